"""What is measured of a surface has the closed forms it should, and claims can fail."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import landscape as experiment
from experiments.landscape import measuring
from experiments.lib.training.recipes import Recipe

CONFIG = experiment.Config(seeds=3, points=9)
T = experiment.positions(CONFIG)


def _surface(bend):
    """A quadratic that bends by 1 along the one diagonal and by `bend` along the other."""
    s, t = (T[:, None] + T) / 2**0.5, (T[:, None] - T) / 2**0.5
    return 1 + (s**2 + bend * t**2) / 2


@pytest.mark.parametrize(
    ("bend", "share"),
    [(1.0, 0.0), (0.0, 0.0), (-0.09, 0.0), (-0.11, 1.0), (-1.0, 1.0), (-3.0, 1.0)],
)
def test_a_quadratic_is_convex_everywhere_or_nowhere(bend, share):
    assert measuring.concave_share(_surface(bend)) == share
    assert measuring.concave_share(_surface(bend).T) == share


def test_a_part_of_a_surface_that_is_not_convex():
    ridge = np.where(T > 0.3, -(T**2), T**2)
    losses = np.tile(ridge, (9, 1))
    bends = np.diff(ridge, 2) < 0
    assert measuring.concave_share(losses) == bends.mean()


def test_the_rise_is_the_mean_of_both_sides():
    slopes = np.array([1.0, 3.0])
    found = 2 + slopes[:, None] * T**2 + 10 * T  # the slope cancels
    assert measuring.rise(found, T, 0.5) == pytest.approx(0.25 * slopes.mean())
    np.testing.assert_allclose(measuring.rise(np.stack([found, 2 * found]), T, 0.5), [0.5, 1.0])


def _mlp(params, batch, state):
    inputs, targets = batch
    hidden = jnp.maximum(inputs @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0)
    out = hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]
    return ((out - targets) ** 2).sum(-1)


def _point():
    draw = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)  # noqa: E731
    layer = lambda *shape: {"kernel": array(*shape), "bias": array(shape[-1])}  # noqa: E731
    return {"layer_0": layer(4, 6), "layer_1": layer(6, 3)}, (array(5, 4), array(5, 3))


def test_rescaling_keeps_the_function_and_lines_along_own_filters():
    params, batch = _point()
    other = measuring.rescaled(params, 10.0)
    np.testing.assert_allclose(other["layer_0"]["bias"], 10 * params["layer_0"]["bias"])
    np.testing.assert_allclose(other["layer_1"]["bias"], params["layer_1"]["bias"])
    np.testing.assert_allclose(
        _mlp(other, batch, None), _mlp(params, batch, None), rtol=1e-4
    )  # float32
    own, unchanged = (
        measuring.change(_mlp, params, batch, None, T, 3, own=own) for own in (True, False)
    )
    assert own < 1e-4  # float32
    assert unchanged > 0.1


def test_a_network_that_rescaling_changes_has_no_number():
    params, batch = _point()
    other = lambda p, *rest: _mlp(p, *rest) + p["layer_0"]["kernel"].sum()  # noqa: E731
    assert np.isnan(measuring.change(other, params, batch, None, T, 3, own=True))


def test_lines_and_surfaces_begin_at_the_point_and_differ_by_direction():
    params, batch = _point()
    found = measuring.lines(_mlp, params, batch, None, T, 2, 3)
    plane = measuring.surface(_mlp, params, batch, None, T, 3)
    at = _mlp(params, batch, None).mean()
    np.testing.assert_allclose(found[:, 4], at, rtol=1e-5)  # float32
    np.testing.assert_allclose(plane[4, 4], at, rtol=1e-5)
    assert abs(found[0] - found[1]).max() > 0.1 * at
    assert abs(plane - plane.T).max() > 0.1 * at


RISES = {
    "small batches": 1.0, "other batches": 0.98, "large batches": 1.4, "SAM": 0.5,
    "skip": 1.0, "skip, other batches": 0.99, "no skip": 3.0,
}  # fmt: skip
BENDS = {"no skip": -0.2}


def _verdicts(rises=(), bends=BENDS, *, halves=1.0, reached=True, own=1e-5, unchanged=0.9):
    spread = np.array([0.99, 1.0, 1.01])  # of three seeds
    runs = {}
    for arm, size in (RISES | dict(rises)).items():
        each = np.repeat([1.0, halves], CONFIG.directions // 2)
        runs[arm] = {
            "lines": 0.02 + size * 4 * T**2 * each[:, None] * spread[:, None, None],
            "surface": np.stack([_surface(bends.get(arm, 1.0))] * 3),
            "reached": np.full(3, reached),
            "own": np.full(3, own),
            "unchanged": np.full(3, unchanged),
        }
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, CONFIG)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    useless = {"SAM": 1.3, "small batches": 1.2, "large batches": 1.0, "skip": 3.5}
    found = _verdicts(useless, {"skip": -0.2}, halves=2.0, own=0.1)
    assert set(found.values()) == {"not reproduced"}
    found = _verdicts(reached=False)
    assert {name for name, verdict in found.items() if verdict == "inconclusive"} == {
        "sam-wider", "small-batches-wider", "skips-wider", "directions-agree",
    }  # fmt: skip


def test_claims_are_void_where_their_null_passes():
    other = {"other batches": 0.4, "skip, other batches": 4.0}
    found = _verdicts(other, BENDS | {"skip, other batches": -0.2}, unchanged=1e-5)
    void = {name for name, verdict in found.items() if verdict == "void"}
    assert {"sam-wider", "skips-wider", "skips-convex", "filters-undo-scales"} <= void


def test_other_batches_are_others_and_all_else_is_the_same(tmp_path, quick_compilation):
    recipe = Recipe(hidden=(4, 4), activation="relu", batch_size=5, epochs=1)
    config = experiment.Config(train_size=20, seeds=1, points=3, directions=2, recipe=recipe)
    arms = {"small": (0, 0.0), "other": (1000, 0.0), "again": (0, 0.0), "sam": (0, 0.3)}
    found = experiment.of_piece(config, tmp_path, recipe, arms)
    losses = {arm: float(records["train_loss"][0]) for arm, records in found.items()}
    assert losses["small"] == pytest.approx(losses["again"], rel=1e-5)  # float32
    for arm in ("other", "sam"):
        assert abs(losses[arm] / losses["small"] - 1) > 1e-4
    np.testing.assert_allclose(found["small"]["lines"][:, :, 1], losses["small"], rtol=1e-5)
    assert found["small"]["surface"].shape == (1, 3, 3)
