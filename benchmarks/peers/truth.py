"""The truth in float64: ``python -m benchmarks.peers.truth TASK.npz TRUTH.npz``.

Up to 5 000 params the Hessian is written out and diagonalised. Beyond, SciPy's ``eigsh`` is run to
1e-10, its pairs are projected out, and Lanczos quadrature with many long runs covers the rest. The
errors of the reference itself are kept with it.
"""

import pathlib
import sys

import numpy as np

from benchmarks.peers import errors, tasks
from benchmarks.peers.adapter import BOTTOM, TOP

DENSE = 5000
DEFLATED_TOP, DEFLATED_BOTTOM = 60, 10
PROBES, STEPS, MOST_PROBES, TRACE_TOL = 12, 100, 1000, 5e-4


def products(task):
    """The float64 product on flat vectors, and the dimension."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    from benchmarks.peers import jax_model

    wide = {name: value.astype(np.float64) for name, value in task.params.items()}
    inputs = task.inputs.astype(np.float64) if task.inputs.dtype.kind == "f" else task.inputs
    model_fn, params, batch = jax_model.model_of(task._replace(params=wide, inputs=inputs))
    flat, unravel = ravel_pytree(params)
    if flat.dtype != jnp.float64:
        raise RuntimeError("The truth needs 64-bit types: set JAX_ENABLE_X64=1.")

    def gradient(p, b):
        return jax.grad(lambda q: jax_model.mean_loss(model_fn, unravel(q), b))(p)

    linear = jax.jit(lambda p, b: jax.linearize(lambda q: gradient(q, b), p)[1])(flat, batch)
    return lambda v: np.asarray(linear(jnp.asarray(v))), flat.size


def dense(one, size):
    """Every eigenvalue."""
    matrix = np.stack([one(row) for row in np.eye(size)])
    gap = np.abs(matrix - matrix.T).max()
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    # The error bound of a dense eigensolver: rounding times the dimension.
    own = max(gap / np.abs(values).max(), size * np.finfo(np.float64).eps)
    own = {"eigenvalue_error": own, "trace_error": own, "density_error": own}
    weights = np.full(size, 1 / size)
    return {"trace": np.trace(matrix), "nodes": values, "weights": weights, "dense": 1, **own}


def converged(one, size):
    """The ends by eigsh, the rest by quadrature."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator((size, size), matvec=one, dtype=np.float64)
    pairs = [
        eigsh(operator, k=k, which=w, tol=1e-10, ncv=4 * k)
        for k, w in ((DEFLATED_TOP, "LA"), (DEFLATED_BOTTOM, "SA"))
    ]
    values = np.concatenate([p[0] for p in pairs])
    vectors, _ = np.linalg.qr(np.concatenate([p[1] for p in pairs], axis=1))
    residual = max(np.linalg.norm(one(v) - x * v) for x, v in zip(values, vectors.T, strict=True))
    generator = np.random.default_rng(0)

    def probe():
        v = generator.choice([-1.0, 1.0], size)
        return v - vectors @ (vectors.T @ v)

    nodes, weights, samples = [], [], []
    rest = (size - len(values)) / size
    for _ in range(PROBES):
        v = probe()
        theta, share = _lanczos(one, v, vectors)
        nodes.append(theta)
        weights.append(rest * share)
        samples.append(float(v @ v) * float(theta @ share))
    while len(samples) < MOST_PROBES:
        total = values.sum() + np.mean(samples)
        error = np.std(samples, ddof=1) / len(samples) ** 0.5
        if len(samples) > 30 and error < TRACE_TOL * abs(total):
            break
        v = probe()
        samples.append(float(v @ one(v)))
    total = values.sum() + np.mean(samples)
    error = np.std(samples, ddof=1) / len(samples) ** 0.5
    atoms = np.full(len(values), 1 / size)
    found = {
        "trace": total,
        "nodes": np.concatenate([values, *nodes]),
        "weights": np.concatenate([atoms, *(w / PROBES for w in weights)]),
    }
    deviation = _deviation(found)
    half = [
        (np.concatenate(nodes[i::2]), np.concatenate(weights[i::2]) / (PROBES / 2))
        for i in range(2)
    ]
    # Two halves differ by twice the error of their mean.
    density_error = errors.wasserstein(*half[0], *half[1]) / 2 / deviation
    own = {"eigenvalue_error": residual / values.max(), "trace_error": error / abs(total)}
    return {**found, **own, "density_error": density_error, "dense": 0, "ends": values}


def _lanczos(one, v, deflated):
    """Gauss quadrature by a Lanczos run with full reorthogonalisation, twice."""
    basis, alphas, betas = [v / np.linalg.norm(v)], [], []
    for _ in range(STEPS):
        w = one(basis[-1])
        alphas.append(basis[-1] @ w)
        for _ in range(2):
            known = np.array(basis)
            w = w - known.T @ (known @ w)
            w = w - deflated @ (deflated.T @ w)
        betas.append(np.linalg.norm(w))
        basis.append(w / betas[-1])
    t = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    theta, s = np.linalg.eigh(t)
    return theta, s[0] ** 2


def _deviation(found):
    mean = found["nodes"] @ found["weights"]
    return float(np.sqrt(found["weights"] @ (found["nodes"] - mean) ** 2))


def compute(task) -> dict:
    """The truth of a task."""
    one, size = products(task)
    found = dense(one, size) if size <= DENSE else converged(one, size)
    ordered = np.sort(found.pop("ends", found["nodes"]))
    return {
        "top": ordered[::-1][:TOP],
        "bottom": ordered[:BOTTOM],
        "deviation": _deviation(found),
        "size": size,
        **found,
    }


if __name__ == "__main__":
    source, target = (pathlib.Path(a) for a in sys.argv[1:])
    np.savez(target, **compute(tasks.read(source)))
