"""SGD with the penalties of Jastrzebski et al. (ICML 2021, "Catastrophic Fisher Explosion").

The columns of their tables: `sgd` (their baseline), `gp_x`, `gp`, `fp`, `gp_r`, and `mixup`, which
is plain SGD on mixed batches.
"""

from __future__ import annotations

import functools

import jax
import optax

import flatjax
from experiments.lib.nets import losses
from experiments.lib.training import minibatch
from experiments.lib.training.minibatch import MakeOptimizer, Recipe

NAMES = {
    "sgd": "baseline",
    "mixup": "mixup",
    "gp_x": "GP_x",
    "gp": "GP",
    "fp": "FP",
    "gp_r": "GP_r",
}


def optimizer(arm: str, recipe: Recipe) -> MakeOptimizer:
    """SGD behind a penalty, evaluated at every step on the whole batch.

    Args:
      arm: one of `NAMES`.
      recipe: the network and its loss.

    Returns:
      `make(seed, {"rate": ..., "coef": ...})`.
    """
    model_fn, loss = minibatch.model_of(recipe), losses.OUTPUT_LOSSES[recipe.loss]

    def make(seed, hyper):
        sampled = {"coef": hyper["coef"], "every": 1, "seed": seed}
        heads = {
            "sgd": optax.identity,
            "mixup": optax.identity,
            "gp": lambda: flatjax.gradient_penalty(hyper["coef"]),
            "gp_x": lambda: flatjax.input_gradient_penalty(model_fn, loss, coef=hyper["coef"]),
            "fp": lambda: flatjax.fisher_penalty(model_fn, loss, **sampled),
            "gp_r": lambda: flatjax.random_label_gradient_penalty(model_fn, loss, **sampled),
        }
        return optax.chain(heads[arm](), optax.sgd(hyper["rate"]))

    return make


def measure(recipe: Recipe, products: int = 6) -> minibatch.Measure:
    """Records tr F of the training set; the error of six products is two per cent here."""
    return functools.partial(_measure, recipe, products)


def _measure(recipe, products, params, model_state, data, key) -> dict[str, jax.Array]:
    fisher = flatjax.fisher(
        minibatch.model_of(recipe),
        losses.OUTPUT_LOSSES[recipe.loss],
        params,
        minibatch.training_batch(recipe, data),
        model_state,
    )
    return {"trace_fisher": flatjax.trace(fisher, key=key, num_products=products).value}
