"""Products with a matrix until `eigsh` has k pairs, beside ARPACK's, and until estimates are good.

Five spectra of 1,000 eigenvalues: five outliers over a small bulk, as of a trained network; a
geometric decay; a uniform one, whose ends are hard to resolve; a semicircle with five outliers at
each end; a power law. The largest 1, 5 and 10 eigenvalues to a residual of 0.1, 0.01 and 0.001 of
the value, which is also what ARPACK's ``tol`` means, from normal random start vectors. ARPACK (by
``scipy.sparse.linalg.eigsh``) counts every product with its ``LinearOperator``, with the default
``ncv`` and with 2k + 1; it returns no measured residuals and looks for nothing missed. flatjax
counts all that ``num_products`` does: Lanczos steps, the one product of the certificate and, with
``verify``, the search for missed pairs. ``off`` is how far the worst value is from the one that its
place in the list says, in tolerances.

Traces, densities and whole spectra on the same eigenvalues: see `_estimates`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
import scipy.stats

import flatjax
from benchmarks import _estimates

SIZE = 1000
SEEDS = {True: 2, False: 8}
COUNTS, TOLERANCES = (1, 5, 10), (1e-1, 1e-2, 1e-3)
CERTIFICATE = 1  # of the products of a call without ``verify``


def spectra() -> dict[str, np.ndarray]:
    """Eigenvalues by name."""
    i = np.arange(1, SIZE + 1)
    bulk = np.abs(np.random.default_rng(0).normal(0, 0.02, SIZE - 5))
    shares = (np.arange(SIZE - 10) + 0.5) / (SIZE - 10)
    ends = np.array([3.0, 2.5, 2.0, 1.75, 1.5])
    return {
        "outliers": np.concatenate([10 * 0.75 ** np.arange(5), bulk]),
        "geometric": 0.9 ** (i - 1.0),
        "uniform": i / SIZE,
        "semicircle": np.concatenate([ends, scipy.stats.semicircular.ppf(shares), -0.8 * ends]),
        "power law": 1.0 / i,
    }


def arpack(
    values: np.ndarray, k: int, tol: float, seed: int, ncv: int | None
) -> tuple[int, np.ndarray]:
    """The products of SciPy's `eigsh`, in float64, and what it finds."""
    count = 0

    def product(v):
        nonlocal count
        count += 1
        return values * v.ravel()

    # pyrefly: ignore [bad-keyword-argument, missing-argument, unexpected-keyword]
    matrix = scipy.sparse.linalg.LinearOperator((SIZE, SIZE), matvec=product, dtype=float)
    start = np.random.default_rng(seed).standard_normal(SIZE)
    options = {"which": "LA", "v0": start, "ncv": ncv, "tol": tol, "maxiter": 10_000}
    found, _ = scipy.sparse.linalg.eigsh(matrix, k, **options)
    return count, found[::-1]


def own(values: np.ndarray, k: int, tol: float, seed: int, verify: bool) -> tuple:
    """The products of flatjax's `eigsh`, in float32, what it finds, and whether all of it."""
    d = jnp.asarray(values, jnp.float32)
    op = jax.tree_util.Partial(jnp.multiply, d)
    key = jax.random.key(seed)
    # A ceiling that is not met.
    found = flatjax.eigsh(op, k, key=key, tol=tol, verify=verify, structure=d, max_products=5000)
    return found.num_products, np.asarray(found.values, float), str(found.complete)


def cell(values: np.ndarray, k: int, tol: float, seeds: int) -> dict[str, object]:
    """Products by method, one number per start vector, and how far the values are off."""
    exact = np.sort(values)[::-1][:k]
    methods = {
        "arpack": lambda seed: arpack(values, k, tol, seed, None),
        "arpack 2k+1": lambda seed: arpack(values, k, tol, seed, 2 * k + 1),
        "eigsh": lambda seed: own(values, k, tol, seed, verify=False),
        "eigsh verified": lambda seed: own(values, k, tol, seed, verify=True),
    }
    out: dict = {"k": k, "tol": tol, "off": {}, "complete": []}
    for name, solve in methods.items():
        found = [solve(seed) for seed in range(seeds)]
        if name == "eigsh verified":
            out["complete"] = [said for *_, said in found]
        out[name] = [products for products, *_ in found]
        worst = [np.max(np.abs(x - exact) / (tol * np.abs(exact))) for _, x, *_ in found]
        out["off"][name] = [round(float(w), 3) for w in worst]
    return out


def better(row: dict) -> list[int]:
    """ARPACK's products with the ``ncv`` that needs fewer in the mean."""
    return min((row["arpack"], row["arpack 2k+1"]), key=np.mean)


def total(results: dict, pick) -> tuple[float, float]:
    """The sum over all cells of the mean over starts, and its standard error."""
    per_start = np.sum([pick(row) for rows in results.values() for row in rows], axis=0)
    return float(per_start.mean()), float(per_start.std(ddof=1) / len(per_start) ** 0.5)


def main(rows, short: bool = False) -> dict[str, dict]:
    """By spectrum, a row for every k and tolerance; and the estimates."""
    seeds = SEEDS[short]
    pairs: dict = {}
    estimates: dict = {}
    for name, values in spectra().items():
        for k in COUNTS:
            for tol in TOLERANCES:
                key = f"{name}/{k}/{tol}"
                found = rows.get(key, lambda v=values, k=k, t=tol: cell(v, k, t, seeds))
                pairs.setdefault(name, []).append(found)
        estimates[name] = rows.get(
            f"{name}/estimates",
            lambda v=values: _estimates.cell(v, _estimates.SEEDS[short], arpack),
        )
        print(f"   {name}: {estimates[name]}", flush=True)
    best, swift = total(pairs, better), total(pairs, lambda row: row["eigsh"])
    full = total(pairs, lambda row: row["eigsh verified"])
    print(f"   ARPACK {best[0]:.0f}, eigsh {swift[0]:.0f}, verified {full[0]:.0f}")
    return {"pairs": pairs, "estimates": estimates}
