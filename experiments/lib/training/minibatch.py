"""Minibatch training of any network inside a compiled loop.

    data = load_seeds("digits", seeds, train_size=400, label_noise=0.25)
    found = train_arm(out / "sgd", Recipe(epochs=100), data, seeds,
                      lambda seed, rate: optax.sgd(rate), hyper=jnp.full(len(seeds), 0.1))
    found.records["test_accuracy"]                                  # (seeds, records)

Everything has a leading axis of runs (one a seed, or seeds times settings). Fully connected
networks are trained side by side under `jax.vmap`; others one run after the other by one compiled
program, since on a CPU convolutions with a kernel for each run are slower.
"""

from __future__ import annotations

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
from experiments.lib.nets import losses, named
from experiments.lib.nets.models import Model
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training import augmentation
from flatjax import loops

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]
Measure = Callable[[Any, Any, SmallData, Any], Mapping[str, jax.Array]]

EVALUATED = 1000
"""Examples that are evaluated at once where the network is not fully connected."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The network, and how long and on what it is trained."""

    network: str = "mlp"
    """mlp, by the next three options; another one of `experiments.lib.nets.named`, such as
    s2cnn-16 or resnet-20-group; or package.module:make, see `experiments.lib.nets.user`."""

    hidden: tuple[int, ...] = (64, 64, 64)
    """mlp: units of the hidden layers."""

    activation: Literal["tanh", "relu"] = "tanh"
    """mlp: between the layers."""

    init_scale: float = 1.0
    """mlp: s in W ~ N(0, s^2 / fan_in)."""

    classes: int = 10
    """Outputs of the network."""

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

    flip: bool = False
    """Images are mirrored left to right with probability 1/2 ..."""

    crop: int = 0
    """... and shifted by up to so many pixels, zeros coming in."""

    target_noise: float = 0.0
    """Standard deviation of the Gaussian noise on one-hot targets, drawn anew at every update."""

    @property
    def flat(self) -> bool:
        """Whether the network takes flat inputs and is trained side by side with others."""
        return self.network == "mlp"

    def __post_init__(self):
        if self.flat and (self.flip or self.crop):
            raise ValueError("flip and crop are for images: name a network that takes them")
        if self.target_noise and self.loss != "squared_error":
            raise ValueError("target_noise is for squared_error, whose targets are one-hot")


class Trained(NamedTuple):
    """What became of all runs.

    Attributes:
      params: the last parameters, leading axis of runs.
      model_state: the last batch statistics, likewise.
      records: arrays (runs, records, ...); `epoch` counts the epochs trained, and stands still
        where a run has reached `stop_loss`.
      reached: (runs,) bool, whether it has.
    """

    params: Any
    model_state: Any
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


@functools.cache
def _network(name, hidden, activation, init_scale, classes) -> Model:
    if name == "mlp":
        return named.plain_mlp(hidden, activation, init_scale, classes)
    return named.model(name, classes)


def network(recipe: Recipe) -> Model:
    """The network; one object for each, so that nothing is compiled twice."""
    r = recipe
    return _network(r.network, r.hidden, r.activation, r.init_scale, r.classes)


def model_of(recipe: Recipe) -> Callable[..., jax.Array]:
    """`model_fn(params, inputs, model_state)`: the logits as evaluated."""
    return network(recipe).model_fn


@functools.cache
def _losses_fn(model: Model, loss: str) -> Callable[..., jax.Array]:
    output_loss = losses.OUTPUT_LOSSES[loss]

    def losses_fn(params, batch, model_state=None):
        return output_loss(model.model_fn(params, batch[0], model_state), batch[1])

    return losses_fn


def losses_fn(recipe: Recipe) -> Callable[..., jax.Array]:
    """`losses_fn(params, (inputs, targets), model_state)`: the loss of every example."""
    return _losses_fn(network(recipe), recipe.loss)


def mean_loss(recipe: Recipe, params: Any, batch: Any, model_state: Any = None) -> jax.Array:
    """The mean loss of a batch `(inputs, targets)`."""
    return losses_fn(recipe)(params, batch, model_state).mean()


def training_batch(recipe: Recipe, data: SmallData, size: int | None = None) -> tuple[Any, Any]:
    """The first training examples with targets as the loss takes them."""
    targets = losses.encode(recipe.loss, jnp.asarray(data.targets[:size]), recipe.classes)
    return jnp.asarray(data.inputs[:size]), targets


def init_runs(recipe: Recipe, data: SmallData, seeds: Any) -> tuple[Any, Any]:
    """First parameters and batch statistics, a function of each run's seed."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(network(recipe).init, (0, None))(keys, data.inputs[0, :1])


def logits(recipe: Recipe, params: Any, model_state: Any, inputs: jax.Array) -> jax.Array:
    """The logits of any number of inputs, as evaluated."""
    model_fn = model_of(recipe)
    whole = 0 if recipe.flat else len(inputs) // EVALUATED
    if not whole:
        return model_fn(params, inputs, model_state)
    parts = inputs[: whole * EVALUATED].reshape(whole, EVALUATED, *inputs.shape[1:])
    _, found = loops.scan(lambda _, part: ((), model_fn(params, part, model_state)), (), parts)
    rest = inputs[whole * EVALUATED :]
    found = found.reshape(-1, found.shape[-1])
    return jnp.concatenate([found, model_fn(params, rest, model_state)]) if len(rest) else found


def accuracies(recipe: Recipe, params: Any, model_state: Any, data: SmallData) -> dict[str, Any]:
    """Losses and accuracies of one run, by the labels given and by the true ones."""
    per_example = losses.per_example(recipe.loss)
    on_train = logits(recipe, params, model_state, data.inputs)
    on_test = logits(recipe, params, model_state, data.test_inputs)
    train, test = on_train.argmax(-1), on_test.argmax(-1)
    wrong = data.targets != data.clean_targets

    def share(hits, among):
        return (hits & among).sum() / jnp.maximum(among.sum(), 1)

    return {
        "train_loss": per_example(on_train, data.targets).mean(),
        "test_loss": per_example(on_test, data.test_targets).mean(),
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
      make_optimizer: `make_optimizer(seed, hyper)`, both of one run and traced. The optimiser gets
        flatjax's extra arguments: `grad_fn`, `value_fn`, `batch`, and `args`, which is
        `(model_state,)`.
      hyper: a tree of numbers with a leading axis of runs, or None.
      measure: `measure(params, model_state, data, key)` of one run, more to record.
      start: the first parameters and batch statistics; default `init_runs`.
      chunk: records between two saves; default a quarter of all, or all of less than eight.
      quiet: no progress bar.

    Returns:
      The runs at the end and along the way.

    Raises:
      ValueError: there are labels for which the network has no output.
    """
    seeds = jnp.asarray(seeds, jnp.uint32)
    hyper = jnp.zeros(len(seeds)) if hyper is None else jax.tree.map(jnp.asarray, hyper)
    largest = max(int(np.max(a)) for a in (data.targets, data.test_targets))
    if largest >= recipe.classes:
        raise ValueError(
            f"the labels go up to {largest} and the network has {recipe.classes} outputs: set "
            f"--recipe.classes {largest + 1}"
        )
    engine = _Engine(recipe, make_optimizer, measure)
    given = (data, seeds, hyper, start)
    if recipe.flat:
        return engine.train(folder, given, chunk, quiet=quiet)
    runs = []
    for i in range(len(seeds)):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], given)
        runs.append(engine.train(folder / f"run_{i}", one, chunk, quiet=quiet))
    return jax.tree.map(lambda *a: np.concatenate(a), *runs)


class _Engine:
    """The compiled programs of one arm; everything has a leading axis of runs."""

    def __init__(self, recipe: Recipe, make_optimizer: MakeOptimizer, measure: Measure | None):
        self.recipe, self.run = recipe, _Run(recipe, make_optimizer, measure)
        self.num_records = 1 + max(1, -(-recipe.epochs // recipe.record_every))
        self._over = jax.vmap if recipe.flat else _single
        self._moving = jax.jit(self._moved, static_argnums=4, donate_argnums=0)
        self._begin, self._still = jax.jit(self._first), jax.jit(self._recorded)

    def train(self, folder, given, chunk, *, quiet) -> Trained:
        data, seeds, hyper, start = given
        data = jax.tree.map(jnp.asarray, data)
        state = self._begin(data, seeds, hyper, start)

        def advance(state, steps):
            if not bool(state["runs"]["reached"].all()):
                return self._moving(state, data, seeds, hyper, steps)
            rest = self._still(state["runs"], data)
            return state, {k: jnp.repeat(v[:, None], steps, axis=1) for k, v in rest.items()}

        count = self.num_records
        chunk = chunk or (count if count < 8 else -(-count // 4))
        state, records = run_chunks(
            folder,
            state,
            advance,
            chunk * -(-count // chunk),
            chunk,
            axis=1,
            logged=count,
            quiet=quiet,
        )
        runs = state["runs"]
        records = {k: v[:, :count] for k, v in records.items()}
        return Trained(runs["params"], runs["model_state"], records, np.asarray(runs["reached"]))

    def _first(self, data, seeds, hyper, start):
        params, model_state = init_runs(self.recipe, data, seeds) if start is None else start
        runs = self._over(self.run.init)(params, model_state, seeds, hyper, data)
        return {"runs": runs, "block": jnp.zeros((), jnp.int32)}

    def _recorded(self, runs, data):
        return self._over(self.run.record)(runs, data)

    def _moved(self, state, data, seeds, hyper, steps):
        epoch = lambda _, runs: self._over(self.run.epoch)(runs, seeds, hyper, data)  # noqa: E731

        def block(state, _):
            # No epoch before the first record, nor in what fills up the last chunk: one program
            # serves all.
            moves = (state["block"] > 0) & (state["block"] < self.num_records)
            epochs = jnp.where(moves, self.recipe.record_every, 0)
            runs = loops.fori(epochs, epoch, state["runs"])
            return {"runs": runs, "block": state["block"] + 1}, self._recorded(runs, data)

        state, records = loops.scan(block, state, length=steps)
        return state, {k: jnp.moveaxis(v, 0, 1) for k, v in records.items()}


def _single(fn):
    """What `jax.vmap` returns of the one run that there is, without a batched kernel."""

    def over(*args):
        out = fn(*jax.tree.map(lambda a: a[0], args))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], out)

    return over


@dataclass(frozen=True)
class _Run:
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
        found = logits(self.recipe, params, model_state, data.inputs)
        loss = losses.per_example(self.recipe.loss)(found, data.targets).mean()
        return loss <= self.recipe.stop_loss

    def record(self, state, data):
        now = state["params"], state["model_state"], data
        found = {"epoch": state["epoch"], **accuracies(self.recipe, *now)}
        if self.measure is not None:
            key = jax.random.wrap_key_data(state["key"])
            found |= self.measure(*now, jax.random.fold_in(key, 2**31 - 1))
        return found

    def epoch(self, state, seed, hyper, data):
        recipe = self.recipe
        tx = self._chain(seed, hyper)
        inputs, targets = training_batch(recipe, data)
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
        model, loss = network(self.recipe), losses.OUTPUT_LOSSES[self.recipe.loss]

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
