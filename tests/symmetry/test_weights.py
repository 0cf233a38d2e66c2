"""Matching weights: permuted networks are found again, the overlap never falls."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.symmetry import _assignments as assignments
from flatjax.symmetry._factors import Factors
from tests.symmetry import networks


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", networks.CASES)
def test_a_permuted_network_is_found_again(name, key):
    case = networks.CASES[name]()
    truth = flatjax.random_permutations(case.spec, key=key)
    target = flatjax.apply_permutation(case.params, truth, case.spec)
    found = flatjax.match_weights(target, case.params, case.spec, key=key, restarts=3)
    equal(found.permutations, truth)
    equal(found.params, target)
    assert found.converged
    norm = sum(np.square(a, dtype=np.float64).sum() for a in jax.tree.leaves(target))
    np.testing.assert_allclose(found.overlap, norm, rtol=1e-12)  # sums in another order


def test_one_group_is_matched_exactly(key):
    case, other = networks.mlp((5,)), networks.mlp((5,), seed=1)
    spec = case.spec
    found = flatjax.match_weights(case.params, other.params, spec, key=key)

    def overlap(p):
        moved = flatjax.apply_permutation(other.params, {"h0": np.array(p)}, spec)
        leaves = zip(jax.tree.leaves(case.params), jax.tree.leaves(moved), strict=True)
        return sum(np.vdot(a.astype(np.float64), np.asarray(b, np.float64)) for a, b in leaves)

    best = max(overlap(p) for p in itertools.permutations(range(5)))
    np.testing.assert_allclose(found.overlap, best, rtol=1e-12)  # sums in another order


def brute_force(pairs, groups):
    """The largest overlap over all permutations of groups of three units."""
    orders = [np.array(p) for p in itertools.permutations(range(3))]
    choices = itertools.product(orders, repeat=len(groups))
    return max(
        assignments.overlap(pairs, dict(zip(groups, chosen, strict=True))) for chosen in choices
    )


@pytest.mark.parametrize("draw", range(4))
def test_three_groups_reach_an_optimum_of_each(draw, seed):
    rng = np.random.default_rng([seed, draw])
    names = [(None, "a"), ("a", "b"), ("b", "c"), ("c", None)]
    pairs = [
        assignments.Pair(
            rng.normal(size=(3, 3)),
            rng.normal(size=(3, 3)),
            Factors((3, 3), n, (None,) * 2, (0, 1)),
        )
        for n in names
    ]
    start = {g: np.arange(3) for g in "abc"}
    found = assignments.descend(pairs, start, rng, 50)
    assert found.converged
    upper = brute_force(pairs, "abc")
    assert found.overlap <= upper + 1e-12  # roundings of sums of 36 numbers
    for group in "abc":
        for p in itertools.permutations(range(3)):
            other = {**found.permutations, group: np.array(p)}
            assert assignments.overlap(pairs, other) <= found.overlap + 1e-12
    # From every corner the best of all is found.
    starts = ({g: rng.permutation(3) for g in "abc"} for _ in range(40))
    best = max(assignments.descend(pairs, s, rng, 50).overlap for s in starts)
    np.testing.assert_allclose(best, upper, rtol=1e-12)


@pytest.mark.parametrize("draw", range(6))
def test_blocks_with_their_units_are_matched_exactly(draw, seed):
    """Two blocks of three units, and a leaf of blocks alone: all 2 * 6 * 6 orders are tried."""
    rng = np.random.default_rng([seed, draw])
    factors = Factors((2, 3, 4), ("h", "h/u", None), (None, 0, None), (0, 1, 2))
    other = Factors((5, 2), (None, "h"), (None, None), (0, 1))
    pairs = [
        assignments.Pair(rng.normal(size=f.shape), rng.normal(size=f.shape), f)
        for f in (factors, other)
    ]
    start = {"h": np.arange(2), "h/u": np.tile(np.arange(3), (2, 1))}
    found = assignments.descend(pairs, start, rng, 50)
    orders = [np.array(p) for p in itertools.permutations(range(3))]
    best = max(
        assignments.overlap(pairs, {"h": np.array(h), "h/u": np.stack([a, b])})
        for h in ((0, 1), (1, 0))
        for a in orders
        for b in orders
    )
    np.testing.assert_allclose(found.overlap, best, rtol=1e-12)


@pytest.mark.parametrize("draw", range(6))
def test_the_answer_of_a_group_is_no_worse_than_what_it_has(draw, seed):
    """Two inner groups in one leaf: matching a pair of blocks goes on from where it was."""
    rng = np.random.default_rng([seed, draw])
    factors = [
        Factors((2, 4, 4), ("g", "g/a", "g/b"), (None, 0, 0), (0, 1, 2)),
        Factors((2, 4), ("g", "g/a"), (None, 0), (0, 1)),
    ]
    pairs = [
        assignments.Pair(rng.normal(size=f.shape), rng.normal(size=f.shape), f) for f in factors
    ]
    units = np.tile(np.arange(4), (2, 1))
    starts = [
        {"g": np.arange(2), "g/a": rng.permuted(units, axis=1), "g/b": rng.permuted(units, axis=1)}
        for _ in range(20)
    ]
    best = max((assignments.descend(pairs, s, rng, 20) for s in starts), key=lambda d: d.overlap)
    answer = assignments.best_response(pairs, best.permutations, "g", rng, 20)
    again = assignments.overlap(pairs, {**best.permutations, **answer})
    assert again >= best.overlap - 1e-12  # the same sums in another order


@pytest.mark.parametrize("name", ["mlp", "attention", "grouped", "recurrent"])
def test_the_overlap_never_falls(name, key):
    case = networks.CASES[name]()
    target = networks.drawn(case.params, seed=9)
    found = [
        flatjax.match_weights(target, case.params, case.spec, key=key, max_sweeps=n)
        for n in (1, 2, 3, 20)
    ]
    overlaps = [f.overlap for f in found]
    first = sum(
        np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (target, case.params)), strict=True)
    )
    assert first < overlaps[0]
    assert overlaps == sorted(overlaps)
    assert found[-1].converged
    assert found[-1].num_sweeps < 20
    assert not found[0].converged  # the first sweep changed something


@pytest.mark.parametrize("name", ["mlp", "recurrent"])
def test_more_starts_are_no_worse(name, key):
    """The recurrent network has one group: other orders of groups make no other start."""
    case = networks.CASES[name]()
    gains = []
    for draw in range(6):
        target = networks.drawn(case.params, seed=10 + draw)
        one, more = (
            flatjax.match_weights(target, case.params, case.spec, key=key, restarts=n).overlap
            for n in (1, 8)
        )
        gains.append(more - one)
    assert min(gains) >= 0
    assert max(gains) > 0  # eight optima of a rugged problem differ


def test_leaves_outside_the_mask_do_not_count(key):
    case = networks.conv_net()
    target = networks.drawn(case.params, seed=3)
    wild = {**target, "batch_stats": jax.tree.map(lambda a: 1e6 * a, target["batch_stats"])}
    mask = {"params": True, "batch_stats": False}
    plain, scaled = (
        flatjax.match_weights(t, case.params, case.spec, key=key, mask=mask) for t in (target, wild)
    )
    equal(plain.permutations, scaled.permutations)
    assert plain.overlap == scaled.overlap
    moved = flatjax.apply_permutation(case.params, plain.permutations, case.spec)
    equal(plain.params, moved)  # statistics move along
    counted = flatjax.match_weights(wild, case.params, case.spec, key=key)
    assert counted.overlap > 1e5


def test_low_precision_keeps_its_dtype(key):
    case = networks.mlp()
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), case.params)
    truth = flatjax.random_permutations(case.spec, key=key)
    target = flatjax.apply_permutation(params, truth, case.spec)
    found = flatjax.match_weights(target, params, case.spec, key=key, restarts=3)
    equal(found.permutations, truth)
    assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(found.params))


def test_bad_input_stops_at_the_door(key):
    case = networks.mlp()
    nan = np.full(6, np.nan)
    match = lambda target=case.params, params=case.params, **kw: flatjax.match_weights(  # noqa: E731
        target, params, case.spec, **{"key": key, **kw}
    )
    with pytest.raises(ValueError, match="max_sweeps"):
        match(max_sweeps=0)
    with pytest.raises(ValueError, match="restarts"):
        match(restarts=0)
    with pytest.raises(ValueError, match="key is missing"):
        match(key=None)
    with pytest.raises(ValueError, match="'layer_2/bias'"):
        match(params={k: v for k, v in case.params.items() if k != "layer_2"})
    with pytest.raises(ValueError, match=r"layer_0/kernel.*target"):
        match(params={**case.params, "layer_0": {"kernel": np.ones((9, 6)), "bias": np.ones(6)}})
    with pytest.raises(ValueError, match="'layer_0/bias' of params is not finite"):
        match(params={**case.params, "layer_0": {"kernel": np.ones((4, 6)), "bias": nan}})
    with pytest.raises(TypeError, match="one boolean"):
        match(mask=jax.tree.map(lambda a: a > 0, case.params))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda p: match(params=p).overlap)(case.params)
