"""How the cost grows with params, examples and Lanczos steps, and the exponent it should have.

A product is a fixed number of passes: its operations grow with params times examples, exponent 1 in
either once the matrices are large (biases and activations grow slower than the params). Lanczos
with full reorthogonalisation is linear in its steps as long as products dominate, and quadratic in
the arithmetic of its vectors beyond: exponents between 1 and 2. Operations are those of the
compiled program, seconds the best of several, on the machine as it is.
"""

import time

import jax
import numpy as np

import flatjax
from benchmarks import _networks

WIDTHS = {True: (64, 128, 256), False: (64, 128, 256, 512)}
EXAMPLES = {True: (64, 256, 1024), False: (64, 128, 256, 512, 1024, 2048)}
STEPS = {True: (16, 32, 64), False: (16, 32, 64, 128, 256)}
REPEATS = 7


def exponent(sizes, costs) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def product_cost(width: int, examples: int) -> dict[str, float]:
    """Of a linearised Hessian product of the MLP: operations, temporary memory, seconds."""
    problem = _networks.mlp(width=width, examples=examples)
    hessian = flatjax.hessian(problem.mean_loss, problem.params, problem.batch).linearize()
    compiled = jax.jit(lambda op, v: op.mv(v)).lower(hessian, problem.params).compile()
    seconds = best(lambda: compiled(hessian, problem.params))
    residuals = sum(x.nbytes for x in jax.tree.leaves(hessian))
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if cost is None or memory is None:
        raise RuntimeError(f"{jax.default_backend()} does not report the cost of a program.")
    params = sum(x.size for x in jax.tree.leaves(problem.params))
    return {
        "params": params,
        "examples": examples,
        "flops": float(cost["flops"]),
        "temporary_bytes": memory.temp_size_in_bytes,
        "residual_bytes": residuals,
        "seconds": seconds,
    }


def lanczos_cost(steps: int) -> dict[str, float]:
    """Of a Lanczos run with full reorthogonalisation, on a product that costs next to nothing."""
    size = 100_000
    values = jax.numpy.linspace(0.0, 1.0, size)
    op = jax.tree_util.Partial(jax.numpy.multiply, values)

    def run():
        return flatjax.linalg.spectral_density(
            op,
            key=jax.random.key(0),
            num_probes=1,
            num_steps=steps,
            deflation_steps=0,
            structure=values,
        ).atoms

    return {"steps": steps, "size": size, "seconds": best(run, 3)}


def best(call, repeats: int = REPEATS) -> float:
    """The least seconds of some calls after a first one."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begin)
    return min(found)


def main(rows, short: bool = False) -> dict[str, object]:
    """Points and fitted exponents."""
    by_params = [rows.get(f"width {w}", lambda w=w: product_cost(w, 256)) for w in WIDTHS[short]]
    by_batch = [
        rows.get(f"examples {n}", lambda n=n: product_cost(128, n)) for n in EXAMPLES[short]
    ]
    by_steps = [rows.get(f"steps {m}", lambda m=m: lanczos_cost(m)) for m in STEPS[short]]
    fits = []
    for name, points, size, costs in (
        ("params", by_params, "params", {"flops": "1", "seconds": "1"}),
        ("examples", by_batch, "examples", {"flops": "1", "residual_bytes": "1", "seconds": "1"}),
        ("Lanczos steps", by_steps, "steps", {"seconds": "1 to 2"}),
    ):
        for cost, expected in costs.items():
            fitted = exponent([p[size] for p in points], [p[cost] for p in points])
            span = [points[0][size], points[-1][size]]
            fits.append(
                {"against": name, "cost": cost, "span": span, "fit": fitted, "expected": expected}
            )
            print(f"   {cost:16} against {name:14} exponent {fitted:5.2f}, expected {expected}")
    points = {"params": by_params, "examples": by_batch, "steps": by_steps}
    return {"points": points, "fits": fits}
