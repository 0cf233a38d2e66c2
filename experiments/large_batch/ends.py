"""What training ends at is like, and the loss between two ends.

found = ended(config, trained, data)                             # phi, curvature, FGSM
chord = lines(recipe, ends_of_one, ends_of_another, data, positions)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.nets.architecture import network
from experiments.lib.training import curvature, recipes
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe


def ended(config: Any, trained: Trained, data: SmallData) -> dict[str, np.ndarray]:
    """What every run of an arm is like where it ends."""
    recipe, found = config.recipe, {"phi": [], "fgsm_accuracy": []}
    for index in range(len(data.targets)):
        params, state = curvature.run_of((trained.params, trained.model_state), index)
        one = curvature.run_of(data, index)
        sharp = flatjax.eps_sharpness(
            recipes.losses_fn(recipe), params, recipes.training_batch(recipe, one), state,
            epsilon=config.epsilon,
        )  # fmt: skip
        found["phi"].append(float(sharp.value))
        accuracy = attacked(recipe, params, state, one.test_inputs, one.test_targets, config.fgsm)
        found["fgsm_accuracy"].append(float(accuracy))
    names = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return (
        curvature.curvature_of_runs(recipe, trained, data, products=config.products)
        | {name: np.array(values) for name, values in found.items()}
        | {name: trained.records[name][:, -1] for name in names}
        | {"reached": trained.reached}
    )


@functools.partial(jax.jit, static_argnums=0)
def attacked(
    recipe: Recipe, params: Any, model_state: Any, inputs: Any, targets: Any, size: float
) -> jax.Array:
    """The accuracy on inputs that are moved by `size` along the sign of the loss's gradient."""
    batch = recipes.training_batch(recipe, SmallData(inputs, targets, targets, inputs, targets))
    gradient = jax.grad(lambda x: recipes.mean_loss(recipe, params, (x, batch[1]), model_state))
    moved = inputs + size * jnp.sign(gradient(batch[0]))
    return recipes.hits(recipes.logits(recipe, params, model_state, moved), targets).mean()


def lines(
    recipe: Recipe, first: Any, second: Any, data: SmallData, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Losses and accuracies, (runs, positions), on the line from one end (0) to another one (1).

    The ends are parameters and batch statistics with a leading axis of runs.
    """
    net, losses_fn = network(recipe), recipes.losses_fn(recipe)

    def metrics(params, batch, model_state):
        hits = net.model_fn(params, batch[0], model_state).argmax(-1) == batch[2]
        return {"loss": losses_fn(params, batch[:2], model_state), "accuracy": hits}

    found: dict[str, list[Any]] = {}
    for index in range(len(data.targets)):
        one = curvature.run_of(data, index)
        (a, state), (b, _) = curvature.run_of((first, second), index)
        train = recipes.training_batch(recipe, one)
        tests = one._replace(inputs=one.test_inputs, targets=one.test_targets)

        def statistics(params, state=state, inputs=train[0]):
            return flatjax.reestimate_batch_statistics(
                lambda p, s, x: net.apply(p, s, x, train=True, key=jax.random.key(0))[1],
                params, state, [inputs],
            )  # fmt: skip

        of_data = {
            "train": (*train, jnp.asarray(one.targets)),
            "test": (*recipes.training_batch(recipe, tests), jnp.asarray(tests.targets)),
        }
        for name, batch in of_data.items():
            line = flatjax.loss_along(
                metrics, a, batch, *(() if state else (state,)),
                args_fn=statistics if state else None,
                direction=jax.tree.map(jnp.subtract, b, a), positions=positions,
            )  # fmt: skip
            for metric, values in line.losses.items():
                found.setdefault(f"{name}_{metric}", []).append(np.asarray(values))
    return {name: np.array(values) for name, values in found.items()}
