"""Matching activations: exact in one pass, by correlation, heads by the units inside."""

import itertools

import jax
import numpy as np
import pytest

import flatjax
from tests.symmetry import networks


def hidden(params, x):
    one, two = (jax.tree.map(np.asarray, params[name]) for name in ("layer_0", "layer_1"))
    first = np.tanh(x @ one["kernel"] + one["bias"])
    return {"h0": first, "h1": np.tanh(first @ two["kernel"] + two["bias"])}


def test_a_permuted_network_is_found_again(key):
    case = networks.mlp()
    x = np.random.default_rng(0).normal(size=(40, 4))
    truth = flatjax.random_permutations(case.spec, key=key)
    target = flatjax.apply_permutation(case.params, truth, case.spec)
    found = flatjax.match_activations(
        hidden(target, x), hidden(case.params, x), case.params, case.spec
    )
    jax.tree.map(np.testing.assert_array_equal, found.permutations, truth)
    jax.tree.map(np.testing.assert_array_equal, found.params, target)
    # Each of the 11 units correlates fully with its own.
    np.testing.assert_allclose(found.overlap, 11, rtol=1e-6)  # activations in float32
    assert (found.num_sweeps, found.converged) == (1, True)


def test_the_best_of_all_orders(seed):
    """Against NumPy's correlations and all 120 orders; scales and means do not matter."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 30, 5))
    w = rng.normal(size=5)
    spec = flatjax.spec_of(w, {"": ("h",)})
    correlations = np.corrcoef(a.T, b.T)[:5, 5:]
    best = max(itertools.permutations(range(5)), key=lambda p: correlations[range(5), p].sum())
    scales, means = rng.uniform(0.1, 10, 5), rng.normal(size=5)
    for other in (b, scales * b + means):
        found = flatjax.match_activations({"h": a}, {"h": other}, w, spec)
        assert found.permutations["h"].tolist() == list(best)
        np.testing.assert_allclose(found.overlap, correlations[range(5), best].sum(), rtol=1e-12)
        np.testing.assert_array_equal(found.params, w[list(best)].astype(np.float32))


def test_pixels_are_examples(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 4, 5, 6))
    w = rng.normal(size=6)
    spec = flatjax.spec_of(w, {"": ("c",)})
    images = flatjax.match_activations({"c": a}, {"c": b}, w, spec)
    rows = flatjax.match_activations({"c": a.reshape(-1, 6)}, {"c": b.reshape(-1, 6)}, w, spec)
    assert images.overlap == rows.overlap
    np.testing.assert_array_equal(images.permutations["c"], rows.permutations["c"])


def test_heads_are_matched_by_their_units(seed):
    rng = np.random.default_rng(seed)
    units = {"heads/qk": rng.normal(size=(50, 3, 4)), "heads/v": rng.normal(size=(50, 3, 2))}
    tree = {"q": np.ones((3, 4)), "v": np.ones((3, 2))}
    spec = flatjax.spec_of(tree, {"q": ("heads", "heads/qk"), "v": ("heads", "heads/v")})
    truth = flatjax.random_permutations(spec, key=jax.random.key(seed))
    heads = truth["heads"]
    target = {g: np.take_along_axis(a[:, heads], truth[g][None], axis=2) for g, a in units.items()}
    found = flatjax.match_activations(target, units, tree, spec)
    jax.tree.map(np.testing.assert_array_equal, found.permutations, truth)
    np.testing.assert_allclose(found.overlap, 3 * 4 + 3 * 2, rtol=1e-12)


@pytest.mark.parametrize("num", [15, 20, 23])
def test_units_that_never_change(num, seed):
    """They correlate with none, whatever their constant and the rounding of its mean."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(num, 3))
    a[:, 1] = 0.1
    b = a[:, [2, 0, 1]].copy()
    b[:, 2] = -7.3
    w = np.ones(3)
    found = flatjax.match_activations({"h": a}, {"h": b}, w, flatjax.spec_of(w, {"": ("h",)}))
    assert found.permutations["h"].tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.overlap, 2, rtol=1e-12)


def test_bad_input_stops_at_the_door():
    w = np.ones(3)
    spec = flatjax.spec_of(w, {"": ("h",)})
    good = np.random.default_rng(0).normal(size=(5, 3))
    match = lambda a, b: flatjax.match_activations(a, b, w, spec)  # noqa: E731
    with pytest.raises(ValueError, match=r"activations needs .*\['h'\] missing, \['g'\] too many"):
        match({"h": good}, {"g": good})
    with pytest.raises(ValueError, match=r"must have shape \(examples, ..., 3\), got \(5, 2\)"):
        match({"h": good[:, :2]}, {"h": good})
    with pytest.raises(ValueError, match="5 examples in the target, of 4"):
        match({"h": good}, {"h": good[:4]})
    with pytest.raises(ValueError, match="correlations need two"):
        match({"h": good[:1]}, {"h": good[:1]})
    with pytest.raises(ValueError, match="not finite"):
        match({"h": good}, {"h": good * np.inf})
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda a: match({"h": a}, {"h": a}).overlap)(good)
