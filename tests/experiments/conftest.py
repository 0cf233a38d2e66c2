import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.lib.data.storage import DATA_DIR_VARIABLE, open_builder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data directory with the digits in it, named in the environment."""
    directory = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_DIR_VARIABLE, str(directory))
        open_builder("digits")
        yield directory


@pytest.fixture(scope="session")
def command_line(data_dir):
    """Starts `python -W error -m experiments ...` as a process of its own."""

    def start(*arguments, **environment) -> subprocess.Popen:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "experiments", *map(str, arguments)],
            cwd=ROOT,
            env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@contextlib.contextmanager
def _quick_compilation():
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def quick_compilation():
    """Programs compiled in a third of the time, and slow: for runs of a few steps."""
    with _quick_compilation():
        yield


@pytest.fixture(scope="module")
def quick_compilation_of_module():
    """The same in all tests of a module, and while its own fixtures are built."""
    with _quick_compilation():
        yield
