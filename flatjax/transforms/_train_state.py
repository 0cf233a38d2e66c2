"""Extra arguments of the optimiser through flax's train state.

flax is not imported: all that is asked of the class behind the mixin is a dataclass with ``tx``, an
optax transformation, ``replace`` and ``apply_gradients``.
"""

import dataclasses
from typing import Any

import optax


class ForwardExtraArgs:
    """A mixin for ``flax.training.train_state.TrainState`` that forwards extra arguments.

    flax's ``apply_gradients(grads=..., **fields)`` calls ``tx.update`` without extra arguments, so
    that SAM and its like never see ``grad_fn``. With this class in front,
    ``class State(flatjax.ForwardExtraArgs, TrainState): ...``, arguments that are fields of the
    state are replaced as before, and those named in ``extra_args`` go to ``tx.update``. An
    optimiser that takes none ignores them. Nothing else changes: structure, checkpoints and
    ``create`` are those of the class behind it.

    Attributes:
      extra_args: the names that are forwarded: those of flatjax's transforms, and ``value``,
        ``grad`` and ``obj_fn`` of optax. Extend it in the class that you write, ``extra_args =
        (*flatjax.ForwardExtraArgs.extra_args, "loss")``. A name that is a field is not forwarded.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> from flax.training import train_state
      >>> class State(flatjax.ForwardExtraArgs, train_state.TrainState):
      ...     pass
      >>> loss = lambda p: jnp.sum(jnp.array([1.0, 4.0]) * p["w"] ** 2) / 2
      >>> tx = optax.chain(flatjax.sam(rho=0.5), optax.sgd(0.1))
      >>> state = State.create(apply_fn=None, params={"w": jnp.array([3.0, 1.0])}, tx=tx)
      >>> grads = jax.grad(loss)(state.params)
      >>> state = state.apply_gradients(grads=grads, grad_fn=jax.grad(loss))
      >>> state.params["w"].round(2).tolist()
      [2.67, 0.44]
    """

    extra_args = ("grad_fn", "value_fn", "batch", "args", "value", "grad", "obj_fn")

    def apply_gradients(self: Any, *, grads: Any, **kwargs: Any) -> Any:
        """The state after one step of the optimiser.

        Args:
          grads: the gradients, a tree like the params.
          **kwargs: fields to replace, and extra arguments of ``tx.update``.

        Returns:
          The new state.

        Raises:
          TypeError: for a name that is neither.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(kwargs.keys() - fields - set(self.extra_args))
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no field {unknown[0]!r}, and forwards to the optimiser "
                f"{', '.join(self.extra_args)} alone: name it in the class, extra_args = "
                f"(*flatjax.ForwardExtraArgs.extra_args, {unknown[0]!r})."
            )
        extra = {name: kwargs.pop(name) for name in kwargs.keys() - fields}
        tx = optax.with_extra_args_support(self.tx)

        def update(updates, state, params=None):
            return tx.update(updates, state, params, **extra)

        # The class behind calls the optimiser; it must find the same one afterwards, or a jitted
        # step, which compares it, would be compiled anew.
        bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
        new = super(ForwardExtraArgs, bound).apply_gradients(grads=grads, **kwargs)
        return new.replace(tx=self.tx)
