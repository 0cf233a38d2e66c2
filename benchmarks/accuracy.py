"""Accuracy against products: every estimator on spectra that are known exactly.

The operators are diagonal matrices turned by a cosine transform, so that no probe is special: a few
outliers over a small bulk, as of a trained network; a power law; a flat spectrum; and one with both
signs. The error is the root mean square over seeds of the relative error; of a density, the
Wasserstein distance in standard deviations of the spectrum; of a diagonal, the relative 2-norm.
``--estimator`` sets an estimator of one's own beside them, see ``_guests``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np

import flatjax
import flatjax.linalg
from benchmarks import _guests
from benchmarks.peers import errors

SIZE, SEEDS = 1024, 5
PRODUCTS = {True: (24, 96), False: (24, 48, 96, 192, 384)}


def spectra() -> dict[str, np.ndarray]:
    """Eigenvalues by name."""
    i = np.arange(1, SIZE + 1)
    generator = np.random.default_rng(0)
    bulk = np.abs(generator.normal(0, 0.02, SIZE - 12))
    outliers = 10.0 * 0.75 ** np.arange(12)
    both = np.concatenate([outliers[:10], generator.normal(0, 0.05, SIZE - 12), [-1.0, -0.5]])
    return {
        "outliers": np.concatenate([outliers, bulk]),
        "power law": 1.0 / i,
        "flat": 0.5 + i / SIZE,
        "both signs": both,
    }


def rotated(values, v):
    """The product with ``C' diag(values) C`` for the orthogonal cosine transform C."""
    turned = jax.scipy.fft.dct(v, norm="ortho")
    return jax.scipy.fft.idct(values * turned, norm="ortho")


def relative(value, exact) -> float:
    """The worst relative error."""
    return float(np.max(np.abs(np.ravel(value).astype(float) - exact) / np.abs(exact)))


def distance(nodes, weights, values) -> float:
    """Of a density, in standard deviations of the spectrum."""
    share = np.full(SIZE, 1 / SIZE)
    nodes, weights = np.asarray(nodes, float), np.asarray(weights, float)
    return errors.wasserstein(nodes, weights, values, share) / values.std()


def of_diagonal(value, values) -> float:
    """Of a diagonal, in the 2-norm."""
    unit = jnp.eye(SIZE, dtype=jnp.float32)
    rows = jax.scipy.fft.dct(unit, norm="ortho", axis=1)
    exact = np.asarray(jnp.square(rows) @ jnp.asarray(values, jnp.float32))
    return float(np.linalg.norm(np.asarray(value) - exact) / np.linalg.norm(exact))


def error_of(quantity: str, found, values: np.ndarray) -> float:
    """The error of an answer of a guest."""
    if quantity == "trace":
        return relative(found, values.sum())
    if quantity == "top":
        return relative(found, np.sort(values)[::-1][: np.size(found)])
    if quantity == "density":
        nodes, weights = found
        return distance(nodes, weights, values)
    return of_diagonal(found, values)


def estimators(count: int) -> dict:
    """By name, ``f(op, key, values) -> (quantity, error)`` with a budget of ``count`` products."""
    like = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    library = flatjax.linalg

    def trace(method):
        def run(op, key, values):
            found = library.trace(op, key=key, method=method, num_products=count, structure=like)
            return relative(found.value, values.sum())

        return run

    def pairs(k):
        def run(op, key, values):
            found = library.eigsh(
                op, k, key=key, tol=1e-7, max_products=count, verify=False, structure=like
            )
            return relative(found.values, np.sort(values)[::-1][:k])

        return run

    def power(op, key, values):
        found = library.power_iteration(op, key=key, tol=1e-7, max_products=count, structure=like)
        return relative(found.values[0], values.max())

    def density(op, key, values):
        found = library.spectral_density(
            op,
            key=key,
            num_probes=2,
            num_steps=count // 3,
            deflation_steps=count // 3,
            structure=like,
        )
        return distance(found.atoms, found.weights, values)

    def all_at_once(what):
        def run(op, key, values):
            steps = count // 3
            found = flatjax.spectrum(
                op,
                key=key,
                k=5,
                num_bottom=1,
                num_steps=steps,
                num_probes=2,
                probe_steps=steps,
                trace_rtol=None,
                structure=like,
            )
            if what == "trace":
                return relative(found.trace.value, values.sum())
            if what == "top 5":
                return relative(found.top.values, np.sort(values)[::-1][:5])
            return distance(found.density.atoms, found.density.weights, values)

        return run

    def diagonal(op, key, values):
        found = library.diagonal(op, key=key, num_products=count, structure=like)
        return of_diagonal(found.value, values)

    return {
        "largest: eigsh": pairs(1),
        "largest: power_iteration": power,
        "top 5: eigsh": pairs(5),
        "top 5: spectrum": all_at_once("top 5"),
        "trace: hutchinson": trace("hutchinson"),
        "trace: deflated": trace("deflated"),
        "trace: hutch++": trace("hutch++"),
        "trace: xtrace": trace("xtrace"),
        "trace: xnystrace": trace("xnystrace"),
        "trace: spectrum": all_at_once("trace"),
        "density: spectral_density": density,
        "density: spectrum": all_at_once("density"),
        "diagonal: hutchinson": diagonal,
    }


def main(
    rows, short: bool = False, guests: Sequence[str] = ()
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """By spectrum and estimator, the errors at rising numbers of products."""
    known = spectra()
    out: dict = {name: {} for name in known}
    functions = {name: _guests.load(name) for name in guests}
    for count in PRODUCTS[short]:
        # First, so that what is wrong with them is said at once. Never kept: their code changes.
        for name, values in known.items():
            for guest, function in functions.items():
                for row, error in beside(guest, function, count, values).items():
                    out[name].setdefault(row, []).append({"products": count, "error": error})
        asked = {row.split(":")[0] for found in out.values() for row in found}
        for estimator, run in estimators(count).items():
            if guests and estimator.split(":")[0] not in asked:
                continue  # beside a guest, only what answers the same question
            # All spectra in turn: they share the compiled programs.
            for name, values in known.items():
                if "xnystrace" in estimator and values.min() < 0:
                    continue  # for positive semi-definite operators only
                key = f"{name}/{estimator}/{count}"
                error = rows.get(key, lambda r=run, v=values: seeds(r, v))
                point = {"products": count, "error": error}
                out[name].setdefault(estimator, []).append(point)
    for name, found in out.items():
        for estimator, points in sorted(found.items(), key=lambda row: row[0].split(":")[0]):
            print(f"   {name:11} {estimator:26}", *(f"{p['error']:.1e}" for p in points))
    return out


def beside(guest: str, function, count: int, values: np.ndarray) -> dict[str, float]:
    """By quantity, the errors of a guest."""
    like = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    found: dict[str, list[float]] = {}
    for op, key, exact in starts(values):
        for quantity, value in _guests.answer(guest, function, op, like, key, count).items():
            row = f"{_guests.title(quantity, value)}: {guest}"
            found.setdefault(row, []).append(error_of(quantity, value, exact))
    return {row: errors.root_mean_square(each) for row, each in found.items()}


def starts(values):
    """By seed, the operator, a key and the exact eigenvalues."""
    op = jax.tree_util.Partial(rotated, jnp.asarray(values, jnp.float32))
    exact = np.asarray(jnp.asarray(values, jnp.float32), float)
    for seed in range(SEEDS):
        yield op, jax.random.key(seed), exact


def seeds(run, values) -> float:
    """The root mean square over seeds."""
    return errors.root_mean_square([run(*start) for start in starts(values)])
