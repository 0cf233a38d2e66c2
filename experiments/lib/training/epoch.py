"""One run: its start, an epoch of updates, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.lib.data.small import SmallData, shuffled_batches
from experiments.lib.nets import losses
from experiments.lib.training import augmentation, recipes
from experiments.lib.training.recipes import Recipe
from flatjax import loops

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]
Measure = Callable[[Any, Any, SmallData, Any], Mapping[str, jax.Array]]


@dataclass(frozen=True)
class Run:
    """One run."""

    recipe: Recipe
    make_optimizer: MakeOptimizer
    measure: Measure | None

    def init(self, params, model_state, seed, hyper, data):
        tx = self._chain(seed, hyper)
        return {
            "params": params,
            "model_state": model_state,
            "opt_state": tx.init(params),
            "key": jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
            "epoch": jnp.zeros((), jnp.int32),
            "reached": self._reached(params, model_state, data),
        }

    def _chain(self, seed, hyper):
        return optax.with_extra_args_support(self.make_optimizer(seed, hyper))

    def _reached(self, params, model_state, data):
        if self.recipe.stop_loss is None:
            return jnp.zeros((), bool)
        found = recipes.logits(self.recipe, params, model_state, data.inputs)
        loss = losses.per_example(self.recipe.loss)(found, data.targets).mean()
        return loss <= self.recipe.stop_loss

    def record(self, state, data):
        now = state["params"], state["model_state"], data
        found = {"epoch": state["epoch"], **recipes.accuracies(self.recipe, *now)}
        if self.measure is not None:
            key = jax.random.wrap_key_data(state["key"])
            found |= self.measure(*now, jax.random.fold_in(key, 2**31 - 1))
        return found

    def epoch(self, state, seed, hyper, data):
        recipe = self.recipe
        tx = self._chain(seed, hyper)
        inputs, targets = recipes.training_batch(recipe, data)
        size = len(inputs)

        def update(carry, drawn):
            params, model_state, opt_state = carry
            index, key = drawn
            batch = self._changed((inputs[index], targets[index]), key)
            objective = self._objective(model_state, batch, key)
            grads, model_state = jax.grad(objective, has_aux=True)(params)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params: jax.grad(objective, has_aux=True)(params)[0],
                value_fn=lambda params: objective(params)[0],
                batch=batch,
                args=(carry[1],),
            )
            return (optax.apply_updates(params, updates), model_state, opt_state), None

        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["epoch"])
        index = jnp.arange(size)[None]
        if recipe.batch_size is not None and recipe.batch_size < size:
            index = shuffled_batches(key, size, recipe.batch_size)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(index))
        carry = (state["params"], state["model_state"], state["opt_state"])
        (params, model_state, opt_state), _ = loops.scan(update, carry, (index, keys))
        moved = {
            "params": params,
            "model_state": model_state,
            "opt_state": opt_state,
            "key": state["key"],
            "epoch": state["epoch"] + 1,
            "reached": self._reached(params, model_state, data),
        }
        if recipe.stop_loss is not None:
            moved = jax.tree.map(lambda a, b: jnp.where(state["reached"], a, b), state, moved)
        return moved

    def _changed(self, batch, key):
        """The batch with augmented images and noisy targets."""
        recipe, (inputs, targets) = self.recipe, batch
        if recipe.flip or recipe.crop:
            inputs = augmentation.moved(
                jax.random.fold_in(key, 2), inputs, flip=recipe.flip, crop=recipe.crop
            )
        if recipe.target_noise:
            noise = jax.random.normal(jax.random.fold_in(key, 3), targets.shape)
            targets = targets + recipe.target_noise * noise
        return inputs, targets

    def _objective(self, model_state, batch, key):
        """The training loss on a batch, and the batch statistics after it."""
        model, loss = recipes.network(self.recipe), losses.OUTPUT_LOSSES[self.recipe.loss]

        def of(params, inputs, *targets):
            dropout = jax.random.fold_in(key, 4)
            found, new = model.apply(params, model_state, inputs, train=True, key=dropout)
            return [loss(found, t).mean() for t in targets], new

        inputs, targets = batch
        if not self.recipe.mixup:

            def objective(params):
                (value,), new = of(params, inputs, targets)
                return value, new

            return objective
        which, how = jax.random.split(key)
        partner = jax.random.permutation(which, len(inputs))
        weight = jax.random.beta(how, self.recipe.mixup, self.recipe.mixup)
        mixed = weight * inputs + (1 - weight) * inputs[partner]

        def objective(params):
            (a, b), new = of(params, mixed, targets, targets[partner])
            return weight * a + (1 - weight) * b, new

        return objective
