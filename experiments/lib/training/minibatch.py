"""Minibatch training of an MLP inside a compiled loop, all seeds and settings side by side.

    data = load_seeds("digits", seeds, train_size=400, label_noise=0.25)
    found = train_arm(out / "sgd", Recipe(epochs=100), data, seeds,
                      lambda seed, rate: optax.sgd(rate), hyper=jnp.full(len(seeds), 0.1))
    found.records["test_accuracy"]                                  # (seeds, records)

Everything has a leading axis of runs (one a seed, or seeds times settings) under `jax.vmap`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.data.small import SmallData, shuffled_batches, small_data, stack_seeds
from experiments.lib.nets import losses
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from experiments.lib.runs.trajectory import run_chunks
from flatjax import loops

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]
Measure = Callable[[Any, SmallData, Any], Mapping[str, jax.Array]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The network, and how long and on what it is trained."""

    hidden: tuple[int, ...] = (64, 64, 64)
    """Units of the hidden layers."""

    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""

    init_scale: float = 1.0
    """s in W ~ N(0, s^2 / fan_in)."""

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """squared_error: half the squared distance to the one-hot label."""

    batch_size: int | None = 40
    """Examples an update, drawn without replacement in an epoch; None for all."""

    epochs: int = 100
    """Passes over the training set."""

    record_every: int = 1
    """Epochs between two records; one is made at the start too."""

    stop_loss: float | None = None
    """Stand still from the epoch after which the training loss is at most this."""

    mixup: float = 0.0
    """Mixup with Beta(mixup, mixup) weights (Zhang et al., ICLR 2018); 0 is off."""


class Trained(NamedTuple):
    """What became of all runs.

    Attributes:
      params: the last parameters, leading axis of runs.
      records: arrays (runs, records, ...); `epoch` counts the epochs trained, and stands still
        where a run has reached `stop_loss`.
      reached: (runs,) bool, whether it has.
    """

    params: Any
    records: dict[str, np.ndarray]
    reached: np.ndarray


def load_seeds(
    name: str, seeds: Sequence[int], *, train_size: int, label_noise: float = 0.0, **options: Any
) -> SmallData:
    """The data of all seeds, with a leading axis; see `small_data`."""
    return stack_seeds(
        [
            small_data(name, seed=s, train_size=train_size, label_noise=label_noise, **options)
            for s in seeds
        ]
    )


def repeat(tree: Any, count: int) -> Any:
    """Every run `count` times in a row, for as many settings."""
    return jax.tree.map(lambda a: np.repeat(np.asarray(a), count, axis=0), tree)


def model_of(recipe: Recipe) -> Callable[[Any, jax.Array], jax.Array]:
    """`model_fn(params, inputs)`; one object a recipe, so that nothing is compiled twice."""
    return _model(recipe.activation)


@functools.cache
def _model(activation: str):
    return functools.partial(apply_mlp, activation=ACTIVATIONS[activation])


@functools.cache
def losses_fn(activation: str, loss: str) -> Callable[..., jax.Array]:
    """`losses_fn(params, (inputs, targets))`: the loss of every example, as operators take it."""
    model_fn, output_loss = _model(activation), losses.OUTPUT_LOSSES[loss]
    return lambda params, batch: output_loss(model_fn(params, batch[0]), batch[1])


def mean_loss(recipe: Recipe, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean loss of a batch `(inputs, targets)`."""
    return losses_fn(recipe.activation, recipe.loss)(params, batch).mean()


def training_batch(recipe: Recipe, data: SmallData, size: int | None = None) -> tuple[Any, Any]:
    """The first training examples with targets as the loss takes them."""
    classes = 10
    targets = losses.encode(recipe.loss, jnp.asarray(data.targets[:size]), classes)
    return jnp.asarray(data.inputs[:size]), targets


def init_runs(recipe: Recipe, data: SmallData, seeds: Any, classes: int = 10) -> Any:
    """First parameters, a function of each run's seed."""
    sizes = (data.inputs.shape[-1], *recipe.hidden, classes)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(lambda key: init_mlp(key, sizes, scale=recipe.init_scale))(keys)


def accuracies(recipe: Recipe, params: Any, data: SmallData) -> dict[str, jax.Array]:
    """Losses and accuracies of one run, by the labels given and by the true ones."""
    model_fn, mean = model_of(recipe), functools.partial(mean_loss, recipe, params)
    logits = model_fn(params, data.inputs)
    train, test = logits.argmax(-1), model_fn(params, data.test_inputs).argmax(-1)
    wrong = data.targets != data.clean_targets

    def share(hits, among):
        return (hits & among).sum() / jnp.maximum(among.sum(), 1)

    encode = functools.partial(losses.encode, recipe.loss, num_classes=logits.shape[-1])
    return {
        "train_loss": mean((data.inputs, encode(data.targets))),
        "test_loss": mean((data.test_inputs, encode(data.test_targets))),
        "train_accuracy": (train == data.targets).mean(),
        "test_accuracy": (test == data.test_targets).mean(),
        "clean_fit": share(train == data.targets, ~wrong),
        "noisy_fit": share(train == data.targets, wrong),
        "noisy_recovered": share(train == data.clean_targets, wrong),
        "norm": optax.tree.norm(params),
    }


def train_arm(
    folder: Path,
    recipe: Recipe,
    data: SmallData,
    seeds: Any,
    make_optimizer: MakeOptimizer,
    *,
    hyper: Any = None,
    measure: Measure | None = None,
    start: Any = None,
    chunk: int | None = None,
    quiet: bool = True,
) -> Trained:
    """Trains all runs and records them; continues where an earlier start stopped.

    Args:
      folder: a folder of its own.
      recipe: network and training.
      data: with a leading axis of runs.
      seeds: of each run: initialisation, order of the batches, `seed` of the optimiser.
      make_optimizer: `make_optimizer(seed, hyper)`, both of one run and traced.
      hyper: a tree of numbers with a leading axis of runs, or None.
      measure: `measure(params, data, key)` of one run, more to record.
      start: the first parameters; default `init_runs`.
      chunk: records between two saves; default a quarter of all, or all of less than eight.
      quiet: no progress bar.

    Returns:
      The runs at the end and along the way.
    """
    seeds = jnp.asarray(seeds, jnp.uint32)
    hyper = jnp.zeros(len(seeds)) if hyper is None else jax.tree.map(jnp.asarray, hyper)
    data = jax.tree.map(jnp.asarray, data)
    run = _Run(recipe, make_optimizer, measure)

    @jax.jit
    def begin():
        params = init_runs(recipe, data, seeds) if start is None else start
        return {
            "runs": jax.vmap(run.init)(params, seeds, hyper, data),
            "block": jnp.zeros((), jnp.int32),
        }

    state = begin()
    num_records = 1 + max(1, -(-recipe.epochs // recipe.record_every))

    @functools.partial(jax.jit, static_argnums=1)
    def moving(state, steps):
        epoch = lambda _, runs: jax.vmap(run.epoch)(runs, seeds, hyper, data)  # noqa: E731

        def block(state, _):
            # No epoch before the first record, nor in what fills up the last chunk: one program
            # serves all.
            moves = (state["block"] > 0) & (state["block"] < num_records)
            epochs = jnp.where(moves, recipe.record_every, 0)
            runs = loops.fori(epochs, epoch, state["runs"])
            return {"runs": runs, "block": state["block"] + 1}, jax.vmap(run.record)(runs, data)

        state, records = loops.scan(block, state, length=steps)
        return state, {k: jnp.moveaxis(v, 0, 1) for k, v in records.items()}

    still = jax.jit(jax.vmap(run.record))

    def advance(state, steps):
        if not bool(state["runs"]["reached"].all()):
            return moving(state, steps)
        rest = still(state["runs"], data)
        return state, {k: jnp.repeat(v[:, None], steps, axis=1) for k, v in rest.items()}

    chunk = chunk or (num_records if num_records < 8 else -(-num_records // 4))
    state, records = run_chunks(
        folder,
        state,
        advance,
        chunk * -(-num_records // chunk),
        chunk,
        axis=1,
        logged=num_records,
        quiet=quiet,
    )
    records = {k: v[:, :num_records] for k, v in records.items()}
    return Trained(state["runs"]["params"], records, np.asarray(state["runs"]["reached"]))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run; everything here is vmapped."""

    recipe: Recipe
    make_optimizer: MakeOptimizer
    measure: Measure | None

    def init(self, params, seed, hyper, data):
        tx = self._chain(seed, hyper)
        return {
            "params": params,
            "opt_state": tx.init(params),
            "key": jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
            "epoch": jnp.zeros((), jnp.int32),
            "reached": self._reached(params, data),
        }

    def _chain(self, seed, hyper):
        return optax.with_extra_args_support(self.make_optimizer(seed, hyper))

    def _reached(self, params, data):
        if self.recipe.stop_loss is None:
            return jnp.zeros((), bool)
        return mean_loss(self.recipe, params, self._batch(data)) <= self.recipe.stop_loss

    def _batch(self, data):
        return training_batch(self.recipe, data)

    def record(self, state, data):
        params = state["params"]
        found = {"epoch": state["epoch"], **accuracies(self.recipe, params, data)}
        if self.measure is not None:
            key = jax.random.wrap_key_data(state["key"])
            found |= self.measure(params, data, jax.random.fold_in(key, 2**31 - 1))
        return found

    def epoch(self, state, seed, hyper, data):
        recipe = self.recipe
        tx = self._chain(seed, hyper)
        inputs, targets = self._batch(data)
        size = len(inputs)

        def update(carry, drawn):
            params, opt_state = carry
            index, key = drawn
            batch = (inputs[index], targets[index])
            grad_fn, value_fn = self._functions(batch, key)
            updates, opt_state = tx.update(
                grad_fn(params), opt_state, params, grad_fn=grad_fn, value_fn=value_fn, batch=batch
            )
            return (optax.apply_updates(params, updates), opt_state), None

        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["epoch"])
        index = jnp.arange(size)[None]
        if recipe.batch_size is not None and recipe.batch_size < size:
            index = shuffled_batches(key, size, recipe.batch_size)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(index))
        start = (state["params"], state["opt_state"])
        (params, opt_state), _ = loops.scan(update, start, (index, keys))
        moved = {
            "params": params,
            "opt_state": opt_state,
            "key": state["key"],
            "epoch": state["epoch"] + 1,
            "reached": self._reached(params, data),
        }
        if recipe.stop_loss is not None:
            moved = jax.tree.map(lambda a, b: jnp.where(state["reached"], a, b), state, moved)
        return moved

    def _functions(self, batch, key):
        """Gradient and value of the training loss on a batch."""
        mean = functools.partial(mean_loss, self.recipe)
        if not self.recipe.mixup:
            value_fn = lambda params: mean(params, batch)  # noqa: E731
            return jax.grad(value_fn), value_fn
        inputs, targets = batch
        which, how = jax.random.split(key)
        partner = jax.random.permutation(which, len(inputs))
        weight = jax.random.beta(how, self.recipe.mixup, self.recipe.mixup)
        mixed = weight * inputs + (1 - weight) * inputs[partner]

        def value_fn(params):
            return weight * mean(params, (mixed, targets)) + (1 - weight) * mean(
                params, (mixed, targets[partner])
            )

        return jax.grad(value_fn), value_fn
