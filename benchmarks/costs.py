"""What products cost beside a gradient, and solvers beside their products.

Flops, bytes and temporary memory are the compiler's analysis of straight-line programs: exact, and
the same in every run on one version of JAX. Programs are counted from the first construction to the
first product and once more for a new batch, new params and a new vector. Time is the ratio of
medians of interleaved runs within this process; on a shared machine it is the only noisy column.

The bound counts matrix products a layer: a gradient has 3 (one forward, two backward). A Hessian
product has 8: 3 for the forward pass and its tangent, 5 for the backward pass of the activations
and the tangents of both (the weight gradients themselves are not needed); linearised 6. A product
with J' M J has 5: 3 forward and 2 backward; linearised 4.

"made" is the time in which an operator is made from a function that was not seen before, over that
of tracing a gradient of it: the function is traced anew and its program compared with those known.

The second table holds 80 Lanczos steps against their bound and the first answer of a session
against the compile time of a gradient; see `benchmarks/_solvers.py`.

``python -m benchmarks.costs --help`` for the options.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
import types

import jax
import rich.box
import rich.console
import rich.table

import flatjax
from benchmarks import _networks, _rows, _solvers
from tests.compilations import count_compilations

BOUNDS = {"hessian": (8 / 3, 2.0), "ggn": (5 / 3, 4 / 3), "covariance": (5 / 3, 4 / 3)}
TARGETS = {"hessian": (2.7, 2.0), "ggn": (1.7, 1.35), "covariance": (1.7, 1.4)}
COLUMNS = {  # key of a result: heading
    "flops": "flops",
    "bound": "bound",
    "target": "goal",
    "bytes": "bytes",
    "temporary": "temp",
    "kept": "kept",
    "programs": "progs",
    "again": "again",
    "construction": "made",
    "time": "time",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      problems: of mlp, cnn, transformer.
      solvers: of mlp, cnn, transformer, deep transformer.
      repeats: interleaved runs of which the median time is taken; 0 for no timing.
      output: a JSON file to write the results to.
    """

    problems: tuple[str, ...] = tuple(_networks.PROBLEMS)
    solvers: tuple[str, ...] = tuple(_solvers.SIZES)
    repeats: int = 15
    output: pathlib.Path | None = None


@jax.jit
def _multiply(op, v):
    return op.mv(v)


def _analysis(compiled) -> dict[str, float]:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if cost is None or memory is None:
        raise RuntimeError(f"{jax.default_backend()} does not report the cost of a program.")
    return {
        "flops": float(cost["flops"]),
        "bytes": float(cost["bytes accessed"]),
        "temporary": float(memory.temp_size_in_bytes),
    }


def _make(kind, problem, params, batch):
    if kind == "ggn":
        return flatjax.ggn(problem.model_fn, flatjax.softmax_cross_entropy, params, batch)
    factory = {"hessian": flatjax.hessian, "covariance": flatjax.gradient_covariance}[kind]
    return factory(problem.losses_fn, params, batch)


def _programs(kind, problem, *, linearize) -> tuple[int, int]:
    """Programs compiled for a first product, and for one of new values."""
    counts = []
    for scale in (1.0, 0.5):
        params = jax.tree.map(lambda a, s=scale: s * a, problem.params)
        jax.block_until_ready(params)
        with count_compilations() as count:
            op = _make(kind, problem, params, problem.batch)
            op = op.linearize() if linearize else op
            jax.block_until_ready(op @ params)
        counts.append(count.value)
    return counts[0], counts[1]


def _constructions(kind, problem, repeats) -> float:
    """Making an operator of a fresh function over tracing its gradient, medians of turns."""

    def fresh(fn):
        return lambda *args: fn(*args)

    def make():
        made = types.SimpleNamespace(
            losses_fn=fresh(problem.losses_fn), model_fn=fresh(problem.model_fn)
        )
        return _make(kind, made, problem.params, problem.batch)

    def trace():
        jax.make_jaxpr(jax.grad(fresh(problem.mean_loss)))(problem.params, problem.batch)

    seconds = _times({"made": make, "traced": trace}, repeats)
    return seconds["made"] / seconds["traced"]


def _times(runs, repeats) -> dict[str, float]:
    """Median seconds of every run, taken in turns so that a busy machine slows all alike."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(name: str, repeats: int = 0) -> dict[str, dict[str, float]]:
    """The costs of every product on one network, as ratios to its gradient."""
    problem = _networks.PROBLEMS[name]()
    params, batch = problem.params, problem.batch
    gradient_fn = jax.jit(jax.grad(problem.mean_loss))
    gradient = _analysis(gradient_fn.lower(params, batch).compile())
    results, runs = {}, {"gradient": lambda: gradient_fn(params, batch)}
    for kind in BOUNDS:
        op = _make(kind, problem, params, batch)
        for i, linearize in enumerate((False, True)):
            row = f"{kind}, linearised" if linearize else kind
            first, again = _programs(kind, problem, linearize=linearize)
            used = op.linearize() if linearize else op
            cost = _analysis(_multiply.lower(used, params).compile())
            results[row] = {key: cost[key] / gradient[key] for key in cost}
            results[row] |= {"bound": BOUNDS[kind][i], "target": TARGETS[kind][i]}
            results[row] |= {"programs": first, "again": again}
            if linearize:
                kept = sum(leaf.nbytes for leaf in jax.tree.leaves(used))
                results[row]["kept"] = kept / gradient["temporary"]
            elif repeats:
                results[row]["construction"] = _constructions(kind, problem, repeats)
            runs[row] = lambda used=used: used @ params
    if repeats:
        seconds = _times(runs, repeats)
        for row in results:
            results[row]["time"] = seconds[row] / seconds["gradient"]
    return results


def _show(title: str, rows: dict[str, dict[str, float]], columns: dict[str, str]) -> None:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for column in ("", *columns.values()):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row, cost in rows.items():
        table.add_row(row, *(f"{cost[c]:.3g}" if c in cost else "" for c in columns))
    rich.console.Console(width=100).print(table)  # also where there is no terminal


def main(
    config: Config | None = None, rows: _rows.Rows | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    config = Config() if config is None else config

    def kept(key, make):
        return make() if rows is None else rows.get(key, make)

    results = {}
    for name in config.problems:
        results[name] = kept(name, functools.partial(measure, name, config.repeats))
        _show(f"{name}: over one gradient", results[name], COLUMNS)
    for name in config.solvers:
        for kind, measured in (("warm", _solvers.warm), ("cold", _solvers.cold)):
            found = kept(f"{name}/{kind}", functools.partial(measured, name))
            results[f"{name}, {kind}"] = found
            _show(f"{name}, {kind}", found, {key: key for key in next(iter(found.values()))})
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
