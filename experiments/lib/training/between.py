"""What lies between trained networks: curves that are trained and kept, and losses on the way.

between = Between(recipe, data, decay=5e-4)                          # of one run
curve = between.fitted(folder, flatjax.bezier([a, None, b]), optax.sgd(0.03), steps=1200)
between.along(curve, np.linspace(0, 1, 25))["train_loss"]            # (25,)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.nets import losses
from experiments.lib.nets.architecture import network
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import recipes
from experiments.lib.training.augmentation import moved
from experiments.lib.training.recipes import Recipe

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
LEGS = 4
"""A curve is kept so many times while it is trained."""


class Batches:
    """One run's training batches, as the recipe has them; every pass has another order."""

    def __init__(self, recipe: Recipe, data: SmallData, seed: Any):
        self._recipe, self._rng = recipe, np.random.default_rng(seed)
        self._inputs, self._targets = map(np.asarray, recipes.training_batch(recipe, data))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yields inputs and targets without replacement; what fills no batch is left out."""
        recipe, count = self._recipe, len(self._inputs)
        size = min(recipe.batch_size or count, count)
        order = self._rng.permutation(count)[: count // size * size].reshape(-1, size)
        for part in order:
            inputs = self._inputs[part]
            if recipe.flip or recipe.crop:
                key = jax.random.key(self._rng.integers(2**31))
                inputs = _moved(key, inputs, flip=recipe.flip, crop=recipe.crop)
            yield inputs, self._targets[part]


_moved = jax.jit(moved, static_argnames=("flip", "crop"))


@functools.cache
def _objective(recipe: Recipe, decay: float) -> Any:
    """The loss to train a curve on: in training mode, with the weight decay of the point itself."""
    model, loss = network(recipe), losses.OUTPUT_LOSSES[recipe.loss]

    def objective(params, batch, model_state):
        inputs, targets = batch
        logits, _ = model.apply(params, model_state, inputs, train=True)
        return loss(logits, targets).mean() + decay / 2 * optax.tree.norm(params, squared=True)

    return objective


@functools.cache
def _metrics(recipe: Recipe) -> Any:
    """`metrics(params, None, data, model_state)`: losses and accuracies as evaluated."""

    def metrics(params, _, data, model_state):
        on_train = recipes.logits(recipe, params, model_state, data.inputs)
        found = recipes.accuracies(recipe, params, model_state, data, on_train)
        return {name: found[name] for name in METRICS}

    return metrics


@functools.cache
def _decayed(recipe: Recipe, decay: float) -> Any:
    """The training loss as evaluated, with the weight decay of the point."""
    per_example = losses.per_example(recipe.loss)

    def decayed(params, _, data, model_state):
        on_train = recipes.logits(recipe, params, model_state, data.inputs)
        loss = per_example(on_train, data.targets).mean()
        return loss + decay / 2 * optax.tree.norm(params, squared=True)

    return decayed


@functools.cache
def _statistics(recipe: Recipe) -> Any:
    """The batch statistics after a pass in training mode."""
    return lambda params, statistics, inputs: network(recipe).apply(
        params, statistics, inputs, train=True
    )[1]


class Between:
    """Curves and planes through networks of one run.

    Batch statistics are those of the params, from the training examples measured, at every point.
    Dropout is off, on curves in training too.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: SmallData,
        model_state: Any = None,
        *,
        decay: float = 0.0,
        measured: int | None = None,
    ):
        """Takes network and loss, and the data of one run.

        Args:
          recipe: of the networks.
          data: of one run.
          model_state: of any of the networks, for its structure.
          decay: weight decay.
          measured: how many training examples losses are measured on; None for all.
        """
        self.recipe, self.data, self.state, self.decay = recipe, data, model_state or {}, decay
        self.measured = jax.tree.map(jnp.asarray, first_examples(data, measured))

    def fitted(self, folder: Path, curve: Any, optimizer: Any, *, steps: int, seed: int = 0) -> Any:
        """The curve after training of its free points; continues where an earlier start stopped."""
        folder.mkdir(parents=True, exist_ok=True)
        moving = curve.free, optimizer.init(curve.free)
        for leg, part in enumerate(np.array_split(np.arange(steps), min(LEGS, steps))):
            kept = kept_arrays(
                folder / f"leg_{leg}.npz",
                functools.partial(self._leg, curve, moving, optimizer, len(part), (seed, leg)),
            )
            leaves = [kept[str(i)] for i in range(len(kept))]
            moving = jax.tree.unflatten(jax.tree.structure(moving), map(jnp.asarray, leaves))
        return curve.with_free(moving[0])

    def _leg(self, curve, moving, optimizer, steps, seed):
        """The free points and the optimiser's state after more steps, by number."""
        free, state = moving
        fit = flatjax.fit_curve(
            _objective(self.recipe, self.decay),
            curve.with_free(free),
            Batches(self.recipe, self.data, seed),
            self.state,
            optimizer=optimizer,
            key=jax.random.fold_in(jax.random.key(seed[0]), seed[1]),
            num_steps=steps,
            state=state,
        )
        leaves = jax.tree.leaves((fit.curve.free, fit.state))
        return {str(i): leaf for i, leaf in enumerate(leaves)}

    def along(self, curve: Any, positions: Any) -> dict[str, np.ndarray]:
        """Losses and accuracies at positions of a curve, their lengths, and the rise `barrier`.

        `barrier` is the largest rise of the training loss above the chord of its ends.
        """
        fn, (args, options) = _metrics(self.recipe), self._arguments()
        found = flatjax.loss_on_curve(fn, curve, None, *args, positions=positions, **options)
        records = {name: np.asarray(found.losses[name]) for name in METRICS}
        barrier = np.asarray(found.barrier["train_loss"])
        return records | {"lengths": np.asarray(found.lengths), "barrier": barrier}

    def over(self, plane: Any, positions: Any, other_positions: Any) -> np.ndarray:
        """The training loss with weight decay over a plane, (positions, other positions)."""
        fn, (args, options) = _decayed(self.recipe, self.decay), self._arguments()
        found = flatjax.loss_surface(
            fn, plane.origin, None, *args, first=plane.first, second=plane.second,
            positions=positions, other_positions=other_positions, **options,
        )  # fmt: skip
        return np.asarray(found.losses)

    def answers(self, params: Any) -> jax.Array:
        """The logits of the test set."""
        state = self.statistics(params) if self.state else {}
        return _answers(self.recipe, params, state, self.measured.test_inputs)

    def statistics(self, params: Any) -> Any:
        """The batch statistics of these params."""
        inputs = self.measured.inputs
        batches = [inputs[part] for part in recipes.parts(len(inputs))]
        update = _statistics(self.recipe)
        return flatjax.reestimate_batch_statistics(update, params, self.state, batches)

    def _arguments(self):
        """What is measured on, and what makes it anew where there are batch statistics."""
        if not self.state:
            return (self.measured, {}), {}
        return (), {"args_fn": lambda params: (self.measured, self.statistics(params))}


_answers = jax.jit(recipes.logits, static_argnums=0)
