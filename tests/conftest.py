"""Strict defaults for every test: one seed, four fake CPU devices, no silent promotion.

Warnings are errors by ``filterwarnings`` in ``pyproject.toml``. Fixtures:

- ``key``: a PRNG key of the fixed seed, which ``FLATJAX_TEST_SEED`` overrides; ``seed``: the
  integer.
- ``x64``: the test runs with 64-bit types.
- ``standard_promotion``: implicit promotion allowed in a strict room, for a flax or optax model.
- ``slow``, ``still``: the clock of what is watched goes on by a second at every look, or not at all
  unless the test says so.
- ``dtype``: the test runs twice, in float32 and in float64 (with 64-bit types on).
"""

import os
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import pytest

TESTS = pathlib.Path(__file__).parent
DEVICES = 4
MOST_MAPS = 20_000
SEED = int(os.environ.get("FLATJAX_TEST_SEED", "0"))
# optax and flax promote dtypes themselves, so only the rooms that never call them are strict.
STRICT_ROOMS = {"operators", "preflight", "optimizers", "linalg", "measures", "ensembles"}

# Compiling takes most of these tests' time, running very little: LLVM is told not to optimise, and
# JAX 0.10's XLA to emit loops without MLIR, which later versions compile faster. Measured with JAX
# 0.10.2, the fast tests of measures fell from 128 s of CPU time to 47 s and those of linalg from
# about 240 s to 104 s; with JAX 0.12 a trial program compiles in two thirds of the time.
# Layouts, collectives and counts of operations, which tests look at, are decided before. An
# XLA_FLAGS of the environment, empty too, takes the place of these: the slow tests run optimised
# programs.
if "XLA_FLAGS" not in os.environ:
    flags = ["--xla_backend_optimization_level=0"]
    if jax.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # unknown to XLA later, an error
    os.environ["XLA_FLAGS"] = " ".join(flags)  # for the processes that tests start, too

# All must be set before the first use of a backend. Other platforms only on demand, by the
# JAX_PLATFORMS environment variable.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)

# No deadline (a first call compiles) and the same examples in every run.
hypothesis.settings.register_profile("flatjax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("flatjax")


def pytest_report_header() -> str:
    return f"flatjax: jax {jax.__version__}, FLATJAX_TEST_SEED={SEED}"


@pytest.fixture(scope="module", autouse=True)
def strict_promotion(request):
    """Implicit dtype and rank promotion are errors in the tests of the strict rooms.

    Of module scope, so that it is also on while a module's own fixtures are built.
    """
    room = request.path.relative_to(TESTS).parts[0]
    if room not in STRICT_ROOMS:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module", autouse=True)
def bounded_programs():
    """Compiled programs are dropped before a process runs out of memory maps.

    Each has several of them, and Linux allows 65,530: beyond, XLA crashes while it compiles.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def standard_promotion():
    """Implicit promotion allowed again: for a model of another library in a strict room."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture
def key(seed):
    return jax.random.key(seed)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def slow(monkeypatch):
    return _clock(monkeypatch, tick=1.0)


@pytest.fixture
def still(monkeypatch):
    return _clock(monkeypatch, tick=0.0)


def _clock(monkeypatch, tick):
    # Not above: the package must not be imported before the settings there.
    from flatjax import _watching as watching
    from tests.watched import Clock

    clock = Clock(tick)
    monkeypatch.setattr(watching, "clock", clock)
    monkeypatch.setattr(watching, "FREE", float("inf"))  # every report is wanted
    return clock
