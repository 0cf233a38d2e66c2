"""The training state and the compiled update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.lib.nets import losses
from experiments.lib.nets.models import Model


class Totals(NamedTuple):
    """Running sums over the updates since the last row of training metrics.

    They live in the state, so that a resumed run's rows are those of an uninterrupted one.

    Attributes:
      updates: how many updates are summed, int32.
      loss: sum of the batches' mean losses, float32.
      accuracy: sum of the batches' accuracies, float32.
      grad_norm: sum of the gradients' norms, float32.
      bad_step: the first update of the run with a non-finite loss, counted from 1; 0 if none.
    """

    updates: jax.Array
    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    bad_step: jax.Array


class TrainState(NamedTuple):
    """All that the next update depends on, the batch apart.

    Attributes:
      step: updates done, int32.
      params: the parameters.
      model_state: batch statistics.
      opt_state: the optimiser's state.
      key: the key of the run; update t uses `fold_in(key, t)`.
      totals: sums for the metrics.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array
    totals: Totals


Step = Callable[[TrainState, dict[str, jax.Array]], TrainState]


def zero_totals() -> Totals:
    """Empty sums, each an array of its own: one buffer cannot be donated twice."""
    types = (jnp.int32, jnp.float32, jnp.float32, jnp.float32, jnp.int32)
    return Totals(*(jnp.zeros((), dtype) for dtype in types))


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    input_shape: tuple[int, ...],
    seed: int,
    dtype: Any = jnp.float32,
) -> TrainState:
    """Returns the state before the first update; traceable, for `jax.jit` and `jax.eval_shape`."""
    key = jax.random.key(seed)
    params, model_state = model.init(
        jax.random.fold_in(key, 0), jnp.zeros((1, *input_shape), dtype)
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        key=jax.random.fold_in(key, 1),
        totals=zero_totals(),
    )
    # A weakly typed leaf would come back strong from a checkpoint and compile another program.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def make_step(model: Model, loss: str, optimizer: optax.GradientTransformation) -> Step:
    """Compiles one update; the state passed in is donated.

    The optimiser may ask for any of flatjax's extra arguments: `grad_fn(params)` and
    `value_fn(params)` on this batch with this update's dropout; `batch`, the pair
    `(inputs, targets)` with targets as the loss takes them; `args`, which is `(model_state, key)`,
    for a `model_fn` such as `Model.train_fn`. Batch statistics come from the pass at the current
    parameters, never from a perturbed one.
    """
    per_example = losses.per_example(loss)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        inputs, targets = batch["inputs"], batch["targets"]
        key = jax.random.fold_in(state.key, state.step)

        def objective(params):
            logits, model_state = model.apply(
                params, state.model_state, inputs, train=True, key=key
            )
            return per_example(logits, targets).mean(), (model_state, logits)

        (value, (model_state, logits)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad=grads,
            grad_fn=lambda params: jax.grad(objective, has_aux=True)(params)[0],
            value_fn=lambda params: objective(params)[0],
            batch=(inputs, losses.encode(loss, targets, logits.shape[-1])),
            args=(state.model_state, key),
        )
        right = logits.argmax(-1) == losses.labels(targets, logits)
        done = state.step + 1
        old = state.totals
        bad = jnp.where((old.bad_step == 0) & ~jnp.isfinite(value), done, old.bad_step)
        totals = Totals(
            updates=old.updates + 1,
            loss=old.loss + value,
            accuracy=old.accuracy + right.mean(dtype=jnp.float32),
            grad_norm=old.grad_norm + optax.tree.norm(grads),
            bad_step=bad,
        )
        params = optax.apply_updates(state.params, updates)
        new = TrainState(done, params, model_state, opt_state, state.key, totals)
        # The same types as what came in, or the second update would compile again.
        return jax.tree.map(lambda n, o: jax.lax.convert_element_type(n, o.dtype), new, state)

    return jax.jit(step, donate_argnums=0)
