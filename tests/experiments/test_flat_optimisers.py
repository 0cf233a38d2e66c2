"""The claims fail where no optimiser helps, and the arms do what they are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import flat_optimisers as experiment

CONFIG = experiment.Config(seeds=3)
NOISE = np.array([[-0.001], [0.0], [0.001]])
# Test accuracy at the end, wrong labels fitted, tr F, sharpness.
FOUND = {
    "SGD": (0.86, 0.9, 145, 6.7), "SAM": (0.97, 0.03, 26, 0.7), "FP": (0.95, 0.2, 47, 1.4),
    "GP": (0.97, 0.15, 35, 1.0), "IGR": (0.87, 0.88, 124, 4.9),
    "other batches": (0.86, 0.9, 144, 6.8),
}  # fmt: skip


def _runs(found):
    """Of every arm 13 records, the best of them in the middle of what it may cost."""
    runs = {}
    for arm, (test, fitted, trace, sharpness) in found.items():
        accuracy = np.full((3, 13), test) + NOISE
        accuracy[:, int(6 / experiment.COST[arm])] += 0.01
        runs[arm] = {
            "epoch": np.tile(CONFIG.recipe.record_every * np.arange(13), (3, 1)),
            "half_accuracy": accuracy,
            "validation_accuracy": accuracy,
            "noisy_fit": np.linspace(0, fitted, 13) + 0 * NOISE,
            "trace_fisher": np.linspace(2 * trace, trace, 13) + 0 * NOISE,
            "sharpness": np.full(3, sharpness),
            "coef": np.full(3, 1.0),
        }
    return runs


def _verdicts(changed=()):
    judged = experiment.lab.judged(_runs(FOUND | dict(changed)), CONFIG)
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    useless = dict.fromkeys(("SAM", "FP", "GP", "IGR"), (0.85, 0.91, 146, 6.9))
    useless["IGR"] = (0.856, 0.91, 146, 6.9)  # four tenths of what GP does
    assert set(_verdicts(useless).values()) == {"not reproduced"}


@pytest.mark.parametrize(("arm", "last"), [("SAM", 6), ("FP", 9), ("GP", 4), ("IGR", 4)])
def test_what_an_arm_reaches_after_its_gradients_are_spent_does_not_count(arm, last):
    runs = _runs(FOUND)
    before = experiment.at_equal_cost(runs, CONFIG, arm)
    for name in ("half_accuracy", "validation_accuracy"):
        runs[arm][name][:, last + 1 :] = 1.0
    np.testing.assert_array_equal(experiment.at_equal_cost(runs, CONFIG, arm), before)
    for name in ("half_accuracy", "validation_accuracy"):
        runs[arm][name][:, last] = 0.999
    np.testing.assert_array_equal(experiment.at_equal_cost(runs, CONFIG, arm), 0.999)


def test_costs_fall_on_records():
    every = CONFIG.recipe.record_every
    for cost in experiment.COST.values():
        records = CONFIG.recipe.epochs / cost / every
        assert records == pytest.approx(round(records))


def _updates(arm, coef):
    """The update of an arm on 1/2 w'Aw, A = diag(1, 2, 3), at w = (1, 1, 1)."""
    tx = experiment.make_optimizer(arm, CONFIG)(0, coef)
    params, scales = jnp.ones(3), jnp.arange(1.0, 4.0)
    value_fn = lambda p: 0.5 * jnp.sum(scales * p**2)  # noqa: E731
    grad_fn = jax.grad(value_fn)
    state = tx.init(params)
    updates, _ = tx.update(grad_fn(params), state, params, grad_fn=grad_fn, value_fn=value_fn)
    return np.asarray(updates)


@pytest.mark.parametrize(
    ("arm", "coef", "expected"),
    [
        ("SGD", 0.5, [1, 2, 3]),
        ("other batches", 0.5, [1, 2, 3]),
        ("SAM", 14**0.5, [2, 6, 12]),  # w + g
        ("GP", 0.5, [2, 6, 12]),  # g + 2 coef H g
        ("IGR", 0.5, [1.05, 2.2, 3.45]),  # g + rate / 2 H g, whatever the coefficient
    ],
)
def test_the_arms_are_what_they_are_called(arm, coef, expected):
    np.testing.assert_allclose(_updates(arm, coef), -0.1 * np.array(expected), rtol=1e-5)  # float32
