"""The calibrated likelihood against sums over a grid, and at temperatures that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from flatjax.ensembles import calibrated_nll

pytestmark = pytest.mark.usefixtures("x64")

MEMBERS, N, CLASSES = 3, 60, 4
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(MEMBERS, N, CLASSES)) + 3 * np.eye(CLASSES)[np.arange(N) % CLASSES]
TARGETS = np.where(RNG.random(N) < 0.4, RNG.integers(0, CLASSES, N), np.arange(N) % CLASSES)
GRID = np.exp(np.arange(-1, 2, 2e-3))


def losses(logits, targets, temperature, average):
    """Every example's loss, from the definition."""
    if average == "before":
        log_p = np.log(special.softmax(logits, axis=-1).mean(axis=0)) / temperature
        p = special.softmax(log_p, axis=-1)
    else:
        p = special.softmax(logits / temperature, axis=-1).mean(axis=0)
    return -np.log(p[np.arange(len(targets)), targets])


@pytest.mark.parametrize("average", ["after", "before"])
def test_every_fold_is_scored_at_the_best_temperature_of_the_others(average, key):
    found = calibrated_nll(LOGITS, TARGETS, key=key, folds=3, average=average)
    scored, temperatures = np.empty(N), []
    for part in np.array_split(np.asarray(jax.random.permutation(key, N)), 3):
        others = np.setdiff1d(np.arange(N), part)
        means = [losses(LOGITS[:, others], TARGETS[others], t, average).mean() for t in GRID]
        temperatures.append(GRID[np.argmin(means)])
        scored[part] = losses(LOGITS[:, part], TARGETS[part], temperatures[-1], average)
    # A step of the grid; the loss away from its minimum on the other folds has a slope.
    np.testing.assert_allclose(np.log(found.temperature), np.log(temperatures).mean(), atol=2e-3)
    np.testing.assert_allclose(found.value, scored.mean(), rtol=1e-3)
    np.testing.assert_allclose(found.standard_error, scored.std(ddof=1) / N**0.5, rtol=2e-3)
    uncalibrated = losses(LOGITS, TARGETS, 1.0, average).mean()
    np.testing.assert_allclose(found.uncalibrated, uncalibrated, rtol=1e-12)


def test_a_known_temperature_is_found(key):
    # Targets drawn at temperature 2.5, which 20,000 of them tell to within a few percent.
    logits = 5 * np.random.default_rng(1).normal(size=(1, 20_000, 3))
    targets = jax.random.categorical(key, jnp.asarray(logits[0] / 2.5))
    found = calibrated_nll(logits, targets, key=key)
    np.testing.assert_allclose(found.temperature, 2.5, rtol=0.05)
    truth = losses(logits, np.asarray(targets), 2.5, "after").mean()
    np.testing.assert_allclose(found.value, truth, rtol=1e-3)  # of second order in the temperature
    assert found.value < found.uncalibrated


def test_the_temperature_has_the_scale_of_the_logits(key):
    plain = calibrated_nll(LOGITS, TARGETS, key=key)
    scaled = calibrated_nll(1e4 * LOGITS, TARGETS, key=key)
    # Both are found to 1e-6 in the logarithm.
    np.testing.assert_allclose(scaled.temperature, 1e4 * plain.temperature, rtol=1e-5)
    np.testing.assert_allclose(scaled.value, plain.value, rtol=1e-5)


def test_one_network_is_averaged_with_itself(key):
    after, before = (
        calibrated_nll(LOGITS[:1], TARGETS, key=key, average=a) for a in ("after", "before")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_edges(key):
    flat = calibrated_nll(np.zeros((2, 6, 4)), np.arange(6) % 4, key=key)
    np.testing.assert_allclose(flat.value, np.log(4), rtol=1e-12)
    assert flat.temperature == 1
    right = calibrated_nll(10 * np.eye(4)[None], np.arange(4), key=key)  # no best temperature
    assert 0 <= right.value < 1e-12
    masked = np.where(np.arange(4) == 3, -np.inf, LOGITS)  # a class that cannot be
    kept = TARGETS < 3
    assert np.isfinite(calibrated_nll(masked[:, kept], TARGETS[kept], key=key).value)
    assert not np.isfinite(calibrated_nll(masked, TARGETS, key=key).value)
    assert np.isnan(calibrated_nll(np.full_like(LOGITS, np.nan), TARGETS, key=key).value)


def test_bad_arguments(key):
    for changes, error, message in [
        ({"logits": LOGITS[0]}, ValueError, "logits must have 3 axes"),
        ({"targets": TARGETS[1:]}, ValueError, r"targets \(n,\)"),
        ({"targets": TARGETS + 0.5}, TypeError, "must be integers"),
        ({"targets": TARGETS + CLASSES}, ValueError, "from 0 to 3"),
        ({"targets": TARGETS - 1}, ValueError, "from 0 to 3"),
        ({"folds": 1}, ValueError, "folds must be at least 2"),
        ({"folds": N + 1}, ValueError, "at least 61 examples"),
        ({"average": "first"}, ValueError, "average must be one of"),
        ({"key": None}, ValueError, "key is missing"),
    ]:
        arguments = {"logits": LOGITS, "targets": TARGETS, "key": key} | changes
        with pytest.raises(error, match=message):
            calibrated_nll(arguments.pop("logits"), arguments.pop("targets"), **arguments)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: calibrated_nll(z, TARGETS, key=key))(LOGITS)
    with pytest.raises(TypeError, match="targets is traced"):
        jax.jit(lambda t: calibrated_nll(LOGITS, t, key=key))(TARGETS)
