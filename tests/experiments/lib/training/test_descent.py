"""The optimisers are those of optax with what the options say, in their order."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.training.descent import Descent, descent, updates
from experiments.lib.training.recipes import Recipe

RECIPE = Recipe(batch_size=5, epochs=3)  # on 10 examples: two updates an epoch, six in all
START = {"a": jnp.array([3.0, -4.0]), "b": jnp.array(2.0)}
GRADIENT = {"a": jnp.array([0.5, 1.0]), "b": jnp.array(-1.0)}


def _walk(tx, steps=7):
    params, state, found = START, tx.init(START), []
    for _ in range(steps):
        change, state = tx.update(GRADIENT, state, params)
        params = optax.apply_updates(params, change)
        found.append(params)
    return found


def test_the_updates_of_an_epoch():
    sizes = {10: 2, 14: 2, 4: 1}  # a rest is left out; one batch of all if they are too few
    assert {size: updates(RECIPE, size) for size in sizes} == sizes
    assert updates(Recipe(batch_size=None), 7) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, optax.sgd(0.1)),
        ({"momentum": 0.9, "nesterov": True}, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ({"momentum": 0.9}, optax.sgd(0.1, momentum=0.9)),
        ({"optimizer": "adam", "learning_rate": 0.2}, optax.adam(0.2)),
        ({"schedule": "cosine"}, optax.sgd(lambda t: 0.05 * (1 + jnp.cos(jnp.pi * t / 6)))),
        ({"schedule": "epochs"}, optax.sgd(lambda t: 0.1 * 0.95 ** (t // 2))),
        (
            {"weight_decay": 0.3, "clip": 0.5},
            optax.chain(
                optax.add_decayed_weights(0.3), optax.clip_by_global_norm(0.5), optax.sgd(0.1)
            ),
        ),
    ],
)
def test_what_the_options_make(options, expected):
    # The cosine ends after six updates: optax's own stays at zero, the formula turns round.
    steps = 6 if options.get("schedule") == "cosine" else 7
    found = _walk(descent(Descent(**options), RECIPE, 10), steps)
    for ours, theirs in zip(found, _walk(expected, steps), strict=True):
        for name in START:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)  # float32


def test_the_decay_is_clipped_with_the_gradient():
    first = _walk(descent(Descent(weight_decay=10.0, clip=0.5), RECIPE, 10), 1)[0]
    moved = optax.tree.norm(optax.tree.sub(first, START))
    assert float(moved) == pytest.approx(0.1 * 0.5, rel=1e-4)  # of float32 differences
