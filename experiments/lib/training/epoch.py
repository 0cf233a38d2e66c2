"""One run: its start, epochs of updates, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.lib.data.small import SmallData, shuffled_batches
from experiments.lib.nets import losses
from experiments.lib.runs.placement import Placement
from experiments.lib.training import augmentation, recipes
from experiments.lib.training.recipes import Recipe
from flatjax import loops

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]
Measure = Callable[[Any, Any, SmallData, Any], Mapping[str, jax.Array]]


@dataclass(frozen=True)
class Run:
    """One run; every device has its state and data, and does its share of the work on a batch."""

    recipe: Recipe
    make_optimizer: MakeOptimizer
    measure: Measure | None
    placement: Placement

    def init(self, params, model_state, seed, hyper):
        return {
            "params": params,
            "model_state": model_state,
            "opt_state": self._chain(seed, hyper).init(params),
            "key": jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
            "epoch": jnp.zeros((), jnp.int32),
            "reached": jnp.zeros((), bool),
        }

    def _chain(self, seed, hyper):
        return optax.with_extra_args_support(self.make_optimizer(seed, hyper))

    def answers(self, state, inputs):
        """The logits of any number of inputs."""
        inputs = self.placement.spread(inputs)
        return recipes.logits(self.recipe, state["params"], state["model_state"], inputs)

    def judged(self, state, data, answers=None):
        """With it whether its loss is one to stop at; `answers` are those to the training set."""
        if self.recipe.stop_loss is None:
            return state
        answers = self.answers(state, data.inputs) if answers is None else answers
        loss = losses.per_example(self.recipe.loss)(answers, data.targets).mean()
        return state | {"reached": loss <= self.recipe.stop_loss}

    def record(self, state, data, answers=None):
        answers = self.answers(state, data.inputs) if answers is None else answers
        now = state["params"], state["model_state"], self.placement.spread(data)
        found = {"epoch": state["epoch"], **recipes.accuracies(self.recipe, *now, answers)}
        if self.measure is not None:
            key = jax.random.wrap_key_data(state["key"])
            found |= self.measure(*now, jax.random.fold_in(key, 2**31 - 1))
        return found

    def blocks(self, state, seed, hyper, data, epochs):
        """As often as `epochs` has entries: trains for so many epochs, then records."""

        def block(state, epochs):
            state = self._trained(state, seed, hyper, data, epochs)
            return state, self.record(state, data)

        return loops.scan(block, state, epochs)

    def _trained(self, state, seed, hyper, data, epochs):
        epoch = lambda state: self.epoch(state, seed, hyper, data)  # noqa: E731
        if self.recipe.stop_loss is None:
            return loops.fori(epochs, lambda _, state: epoch(state), state)
        end = state["epoch"] + epochs
        return loops.until(lambda now: (now["epoch"] >= end) | now["reached"], epoch, state)

    def epoch(self, state, seed, hyper, data):
        state = self.updated(state, seed, hyper, data, *self.drawn(state, data))
        return self.judged(state | {"epoch": state["epoch"] + 1}, data)

    def drawn(self, state, data):
        """The examples of every batch of this epoch, (updates, batch), and a key for each."""
        size = len(data.targets)
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["epoch"])
        index = jnp.arange(size)[None]
        if self.recipe.batch_size is not None and self.recipe.batch_size < size:
            index = shuffled_batches(key, size, self.recipe.batch_size)
        return index, jax.random.split(jax.random.fold_in(key, 1), len(index))

    def updated(self, state, seed, hyper, data, index, keys, inputs=None):
        """The state after an update with each batch; `inputs` are those at `index`."""
        recipe, tx = self.recipe, self._chain(seed, hyper)
        targets = losses.encode(recipe.loss, data.targets, recipe.classes)

        def update(carry, drawn):
            params, model_state, opt_state = carry
            index, key, inputs = drawn
            inputs = data.inputs[index] if inputs is None else inputs
            batch = self._changed(self.placement.spread((inputs, targets[index])), key)
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

        names = ("params", "model_state", "opt_state")
        carry, _ = loops.scan(update, tuple(state[n] for n in names), (index, keys, inputs))
        return state | dict(zip(names, carry, strict=True))

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
