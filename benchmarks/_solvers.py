"""What `eigsh` and `spectrum` cost beside the bare products they spend, warm and cold.

Warm, 80 Lanczos steps are held against a bound: the products, each at the time of one bare compiled
product, and two reads of the filled basis a step at the copy bandwidth of this machine. All are
taken in turns within one process, and the ratio is of medians.

Cold, the first answer is held against the compile time of ``jax.grad`` of the same mean loss:
(time of a first call - time of a second call) / compile time. The first call compiles everything,
the second nothing. A single product is compiled by all of them. Medians of several rounds, on a few
examples: what runs must be short beside what compiles.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import flatjax
from benchmarks import _networks
from flatjax import loops
from tests.compilations import count_compilations

STEPS, PAIRS = 80, 10
WARM, COLD = (
    {"lanczos": 1.2, "eigsh": 1.2, "spectrum": 1.2},
    {
        "product": None,
        "eigsh": 4.0,
        "spectrum": 6.0,
    },
)
SIZES: dict[str, Callable[[], _networks.Problem]] = {
    "mlp": lambda: _networks.mlp(width=576),
    "cnn": _networks.cnn,
    "transformer": _networks.transformer,
    "deep transformer": lambda: _networks.transformer(width=64, layers=8, vocabulary=256),
}
FEW: dict[str, Callable[[], _networks.Problem]] = {
    "mlp": lambda: _networks.mlp(width=64, examples=32),
    "cnn": lambda: _networks.cnn(examples=2),
    "transformer": lambda: _networks.transformer(width=32, vocabulary=256, examples=1),
    "deep transformer": lambda: _networks.transformer(
        width=32, layers=8, vocabulary=256, examples=1
    ),
}


def _solvers(op, key):
    ones = jax.tree.map(jnp.ones_like, op.structure)
    fixed = STEPS + PAIRS + 1
    return {
        "lanczos": lambda: flatjax.lanczos(op, ones, STEPS),
        # A tolerance that is not reached: so many steps, and the certificate.
        "eigsh": lambda: flatjax.eigsh(
            op, PAIRS, key=key, tol=1e-12, max_products=fixed, max_basis=STEPS, verify=False
        ),
        "spectrum": lambda: flatjax.spectrum(op, key=key, num_steps=STEPS, trace_rtol=None),
    }


def _structure_op(problem):
    return flatjax.hessian(problem.losses_fn, problem.params, problem.batch)


def _medians(runs, repeats):
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def warm(name: str, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Times of 80 steps over their bound, by solver."""
    op = _structure_op(SIZES[name]())
    product, v = loops.product(op), jax.tree.map(jnp.ones_like, op.structure)
    solvers = _solvers(op, jax.random.key(0))
    # The basis itself, so that what the caches hold is the same.
    copied = jnp.ones(STEPS * op.size)
    copy = jax.jit(jnp.negative)
    runs = {"product": lambda: product(v), "copy": lambda: copy(copied), **solvers}
    # The second call as well: the first has compiled and allocated.
    spent = {}
    for key, run in runs.items():
        found = jax.block_until_ready(run())
        spent[key] = getattr(found, "num_products", 1)
    seconds = _medians(runs, repeats)
    bandwidth = 2 * copied.nbytes / seconds["copy"]
    traffic = (
        copied.nbytes * (STEPS + 1) / bandwidth
    )  # sum over steps of 2 reads of the filled rows
    out = {}
    for key in solvers:
        products = spent[key] * seconds["product"]
        out[key] = {
            "params": op.size,
            "products": spent[key],
            "seconds": seconds[key],
            "over products": seconds[key] / products,
            "over bound": seconds[key] / (products + traffic),
            "goal": WARM[key],
        }
    return out


def cold(name: str, repeats: int = 3) -> dict[str, dict[str, float]]:
    """The compile time of a first answer over that of a gradient, by solver."""
    problem, key = FEW[name](), jax.random.key(0)
    jax.block_until_ready((problem.params, problem.batch, key))
    gradient_fn = jax.jit(jax.grad(problem.mean_loss))

    def answer(solver):
        op = _structure_op(problem)
        if solver == "product":
            return loops.product(op)(problem.params)
        if solver == "eigsh":
            return flatjax.eigsh(op, PAIRS, key=key, tol=1e-2).values
        return flatjax.spectrum(op, key=key, trace_rtol=None).top.values

    def timed(run):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - begin

    out = {}
    for solver, goal in COLD.items():
        rounds = []
        for _ in range(repeats):
            jax.clear_caches()
            gradient = timed(lambda: gradient_fn.lower(problem.params, problem.batch).compile())
            with count_compilations() as count:
                first = timed(lambda s=solver: answer(s))
                programs = count.value
                second = timed(lambda s=solver: answer(s))
            rounds.append((gradient, first, second, (first - second) / gradient))
        gradient, first, second, ratio = map(statistics.median, zip(*rounds, strict=True))
        out[solver] = {
            "gradient": gradient,
            "first": first,
            "second": second,
            "over gradient": ratio,
            "programs": programs,
            **({} if goal is None else {"goal": goal}),
        }
    return out
