"""SGD with the penalties of Jastrzebski et al. (ICML 2021, "Catastrophic Fisher Explosion").

The columns of their tables: `sgd` (their baseline), `gp_x`, `gp`, `fp`, `gp_r`, and `mixup`, which
is plain SGD on mixed batches.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.nets import losses
from experiments.lib.training import recipes
from experiments.lib.training.epoch import MakeOptimizer, Measure
from experiments.lib.training.recipes import Recipe

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
      `make(seed, {"rate": ..., "coef": ...})`; with "since" and "until" the coefficient counts from
      the one step to before the other.
    """
    model_fn, loss = recipes.model_of(recipe), losses.OUTPUT_LOSSES[recipe.loss]

    def make(seed, hyper):
        coef = _during(hyper) if "until" in hyper else hyper["coef"]
        sampled = {"coef": coef, "every": 1, "seed": seed}
        heads = {
            "sgd": optax.identity,
            "mixup": optax.identity,
            "gp": lambda: flatjax.gradient_penalty(coef),
            "gp_x": lambda: flatjax.input_gradient_penalty(model_fn, loss, coef=coef),
            "fp": lambda: flatjax.fisher_penalty(model_fn, loss, **sampled),
            "gp_r": lambda: flatjax.random_label_gradient_penalty(model_fn, loss, **sampled),
        }
        return optax.chain(heads[arm](), optax.sgd(hyper["rate"]))

    return make


def _during(hyper):
    def coef(step):
        return jnp.where((step >= hyper["since"]) & (step < hyper["until"]), hyper["coef"], 0.0)

    return coef


def measure(recipe: Recipe, products: int = 6) -> Measure:
    """Records tr F of the training set; the error of six products is two per cent here."""
    return functools.partial(_measure, recipe, products)


def _measure(recipe, products, params, model_state, data, key) -> dict[str, jax.Array]:
    fisher = flatjax.fisher(
        recipes.model_of(recipe),
        losses.OUTPUT_LOSSES[recipe.loss],
        params,
        recipes.training_batch(recipe, data),
        model_state,
    )
    return {"trace_fisher": flatjax.trace(fisher, key=key, num_products=products).value}


def batch_norms(
    recipe: Recipe,
    params: Any,
    model_state: Any,
    data: SmallData,
    key: jax.Array,
    draws: int = 4,
) -> dict[str, jax.Array]:
    """Records B E |g|^2 of batches of B: with labels that the model draws, and with those given.

    With the former it is tr F, whatever the batch size, as the labels are independent and the mean
    gradient is zero.
    """
    model_fn, loss = recipes.model_of(recipe), losses.OUTPUT_LOSSES[recipe.loss]
    inputs, given = recipes.training_batch(recipe, data)
    size = min(recipe.batch_size or len(inputs), len(inputs))
    count = len(inputs) // size
    logits = model_fn(params, inputs, model_state)

    def mean(targets):
        def squared(i):
            part = lambda a: jax.lax.dynamic_slice_in_dim(a, i * size, size)  # noqa: E731
            gradient = jax.grad(
                lambda p: loss(model_fn(p, part(inputs), model_state), part(targets)).mean()
            )
            return optax.tree.norm(gradient(params), squared=True)

        return size * jax.vmap(squared)(jnp.arange(count)).mean()

    drawn = jax.vmap(lambda k: mean(loss.sample(k, logits)))(jax.random.split(key, draws))
    return {"drawn_norms": drawn.mean(), "given_norms": mean(given)}
