"""SGD with the penalties of Jastrzebski et al. (ICML 2021, "Catastrophic Fisher Explosion").

The columns of their tables: `sgd` (their baseline), `gp_x`, `gp`, `fp`, `gp_r`, and `mixup`, which
is plain SGD on mixed batches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

import flatjax
from experiments.lib import losses, minibatch
from experiments.lib.curves import mean_and_error
from experiments.lib.figures import style
from experiments.lib.minibatch import MakeOptimizer, Recipe
from experiments.lib.report import Table

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


def _measure(recipe, products, params, data, key) -> dict[str, jax.Array]:
    fisher = flatjax.fisher(
        minibatch.model_of(recipe),
        losses.OUTPUT_LOSSES[recipe.loss],
        params,
        minibatch.training_batch(recipe, data),
    )
    return {"trace_fisher": flatjax.trace(fisher, key=key, num_products=products).value}


def table(columns: Sequence[str], rows: dict[str, Sequence[Any]], caption: str) -> Table:
    """Accuracies (per seed) in per cent with standard errors, in the columns of the paper."""
    cells = []
    for name, values in rows.items():
        cells.append([name, *(_percent(v) for v in values)])
    return Table(("setting", *columns), cells, caption)


def _percent(values: Any) -> str:
    mean, error = mean_and_error(100 * np.asarray(values))
    return f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")


def points(axes: Any, labels: Sequence[str], values: Sequence[Any], number: int, name: str = ""):
    """One point an arm with two standard errors, and every seed beside it."""
    chosen = style(number)
    for i, v in enumerate(values):
        mean, error = mean_and_error(v)
        axes.errorbar(
            i, mean, yerr=2 * (error or 0.0), capsize=4, color=chosen["color"],
            marker=chosen["marker"], linestyle="none", label=name if i == 0 and name else None,
        )  # fmt: skip
        axes.plot(np.full(len(v), i + 0.2), v, ".", color=chosen["color"], alpha=0.5)
    axes.set_xticks(range(len(labels)), labels)
