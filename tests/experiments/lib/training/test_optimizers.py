"""The optax chains: against optax's own, schedules, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.training.config import OptimizerConfig
from experiments.lib.training.optimizers import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"name": "sgd", "momentum": 0.9}, optax.sgd(0.1, momentum=0.9)),
        ({"name": "nesterov", "momentum": 0.9}, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ({"name": "adam", "b2": 0.99}, optax.adam(0.1, b2=0.99)),
        ({"name": "adamw", "weight_decay": 0.1}, optax.adamw(0.1, weight_decay=0.1)),
        ({"name": "rmsprop"}, optax.rmsprop(0.1, decay=0.999, eps=1e-8)),
        (
            {"clip": 0.5, "weight_decay": 0.1},
            optax.chain(
                optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.1), optax.sgd(0.1)
            ),
        ),
    ],
)
def test_the_chain_is_the_optimiser_it_names(options, reference):
    params = ours = theirs = {"w": jnp.array([1.0, -2.0, 3.0])}
    mine = make_optimizer(OptimizerConfig(learning_rate=0.1, **options), 10)
    state, other = mine.init(params), reference.init(params)
    for _ in range(3):
        updates, state = mine.update(jax.tree.map(jnp.sin, ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, other = reference.update(jax.tree.map(jnp.sin, theirs), other, theirs)
        theirs = optax.apply_updates(theirs, updates)
    # The same formula, with its numbers as float32: 1 - 0.999 then is off by 5e-5 of itself, and
    # so is the square root of what it averages; three steps of order 1.
    np.testing.assert_allclose(ours["w"], theirs["w"], atol=3e-4)


def test_the_state_tells_the_hyperparameters():
    state = make_optimizer(OptimizerConfig(name="adam", learning_rate=0.25), 10).init(jnp.ones(2))
    assert float(optax.tree.get(state, "learning_rate")) == 0.25
    assert float(optax.tree.get(state, "b2")) == pytest.approx(0.999)


def rates(total, **options):
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **options), total)
    return np.array([float(schedule(t)) for t in range(total + 1)])


def test_schedules():
    assert (rates(8) == 1).all()
    cosine = rates(8, schedule="cosine")
    np.testing.assert_allclose(cosine, (1 + np.cos(np.pi * np.arange(9) / 8)) / 2, atol=1e-6)
    np.testing.assert_allclose(
        rates(8, schedule="steps"), [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6
    )
    np.testing.assert_allclose(rates(4, warmup_steps=2), [0, 0.5, 1, 1, 1])
    # What follows the warm-up has the rest of the run, and ends with it.
    after = rates(10, warmup_steps=2, schedule="cosine")
    np.testing.assert_allclose(after, [0, 0.5, *cosine], atol=1e-6)
    after = rates(14, warmup_steps=2, schedule="steps")
    np.testing.assert_allclose(after, [0, 0.5, *6 * [1], *3 * [0.1], *4 * [0.01]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"name": "lion"}, {"schedule": "linear"}])
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match=r"unknown (optimiser|schedule) '.*'; choose"):
        make_optimizer(OptimizerConfig(**options), 10)
