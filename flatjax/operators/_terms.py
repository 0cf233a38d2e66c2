"""What a loss function returns, in one form: losses and their weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.losses import Mean
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import Checked, check_output
from flatjax.operators._base import operator, static
from flatjax.operators._callables import for_examples, of_part
from flatjax.operators._data import DataOperator, sliced, sliced_weights

# The forms: the mean over the examples, one loss an example, and a `Mean` of scalars or of rows.
MEAN, LOSSES, SCALARS, ROWS = "mean", "losses", "Mean", "Mean of rows"


def as_terms(out: Any, weights: Any = None, n: int | None = None) -> tuple[Any, Any]:
    """Losses in at least float32 and weights whose weighted mean is the loss, of shape ``(k,)``.

    The weights are constants of any derivative. ``out`` is what the loss function returned: a
    scalar, which counts by ``n`` examples, one loss an example, or a ``Mean``.
    """
    if isinstance(out, Mean):
        total = weighting.at_least_float32(jnp.atleast_1d(out.total))
        own = jax.lax.stop_gradient(jnp.atleast_1d(out.weight).astype(total.dtype))
        losses = total / jnp.where(own == 0, jnp.ones_like(own), own)
        return losses, own if weights is None else own * weights.astype(own.dtype)
    losses = weighting.at_least_float32(jnp.asarray(out))
    if losses.ndim == 0:
        return losses[None], jnp.full((1,), n or 1, losses.dtype)
    return losses, jnp.ones_like(losses) if weights is None else weights


def of_one(loss_fn: Callable[..., Any], params: Any, example: Any, args: tuple) -> tuple[Any, Any]:
    """The loss and the weight of a single example, which has no leading axis."""
    single = jax.tree.map(lambda a: a[None], example)
    losses, weights = as_terms(loss_fn(params, single, *args), None, 1)
    return losses[0], weights[0]


def gradient_of_one(
    loss_fn: Callable[..., Any], params: Any, example: Any, args: tuple
) -> tuple[Any, Any]:
    """The gradient of [`of_one`][] with respect to the params, and the weight."""
    return jax.grad(lambda p: of_one(loss_fn, p, example, args), has_aux=True)(params)


@operator
class LossOperator(DataOperator):
    """What operators of a loss function share: the call of it, and the weights of its terms.

    In ``batch`` the examples of weight zero are copies of one that counts, made by the factory.
    """

    params: Any
    batch: Any
    args: tuple
    weights: jax.Array | None
    loss_fn: Any
    form: Any = static()
    n: Any = static()
    axis_name: Any = static(default=None)
    precision: Any = static(default="highest")
    weight_size: Any = None  # of `size_of`

    @property
    def examples(self):
        return self.n

    @property
    def per_example(self):
        return self.form in (LOSSES, ROWS)

    def part(self, start, size, keep):
        return dataclasses.replace(
            self,
            batch=sliced(self.batch, start, size),
            weights=sliced_weights(self.weights, start, size, keep),
            n=size,
        )

    def for_chunks(self, size: int) -> Any:
        """The operator with its function followed for chunks of this size, too."""
        params = collectives.varying(self.params, self.axis_name)
        fn = for_examples(self.loss_fn, params, self.batch, self.args, size, self.precision)
        return dataclasses.replace(self, loss_fn=fn)

    def restrict(self, selection):
        return of_part(self, "loss_fn", selection)

    def _facts(self):
        return {"loss": self.loss_fn.name, **super()._facts()}

    def _call(self, params, batch):
        return self.loss_fn(params, batch, *self.args)

    def terms(self, params: Any) -> tuple[Any, Any]:
        """The losses and their weights at ``params``, as [`as_terms`][] gives them."""
        if self.form != ROWS:
            return as_terms(self._call(params, self.batch), self.weights, self.n)
        # The weights depend on the batch only, so of the first call nothing else is computed.
        given = as_terms(self._call(params, self.batch), self.weights)[1]
        batch = weighting.replaced(self.batch, given != 0)
        return as_terms(self._call(params, batch))[0], given

    @property
    def example_weights(self):
        dtype = trees.dtype(self.params)
        if self.form == MEAN:
            return jnp.full((1,), self.n or 1, dtype)
        if self.form == LOSSES:
            return jnp.ones((self.n or 1,), dtype) if self.weights is None else self.weights
        params = collectives.varying(self.params, self.axis_name)
        return as_terms(self._call(params, self.batch), self.weights)[1].astype(dtype)

    @property
    def scale(self):
        if self.form in (SCALARS, ROWS):
            return self.scale_of(self.example_weights)
        return self.scale_of(None)

    def scale_of(self, weights: Any) -> Any:
        """``scale``, which for a ``Mean`` is the total of its weights."""
        if self.form in (SCALARS, ROWS):
            total = weights.sum()
            return jnp.where(total == 0, jnp.ones_like(total), total)
        return self.n or 1 if self.weight_size is None else self.n * self.weight_size

    def local_loss(self, params: Any) -> Any:
        """The sum of the losses with their shares of this device's weight, a scalar."""
        losses, weights = self.terms(params)
        factors = weighting.shares(weights, self.scale_of(weights))
        return (losses * factors.astype(losses.dtype)).sum()


def form_of(out: Any, checked: Checked, *, scalar_allowed: bool) -> str:
    """What form a loss function returns, or an error unless the operator can work with it.

    Args:
      out: what it returns, as ``jax.ShapeDtypeStruct``.
      checked: the outcome of ``check_arguments``.
      scalar_allowed: whether a mean loss will do.

    Raises:
      TypeError: if it is no real floating array.
      ValueError: for another shape, or weights beside a scalar loss.
    """
    total = _checked_mean(out, checked.n) if isinstance(out, Mean) else out
    check_output("loss_fn", total)
    if total.shape == ():
        if not scalar_allowed:
            raise ValueError(
                "this operator needs per-example losses: loss_fn must return shape (n,), got a "
                "scalar. Do not take the mean over the batch."
            )
        if checked.weights is not None:
            raise ValueError(
                "weights need per-example losses: loss_fn must return shape (n,), got a scalar."
            )
        return SCALARS if isinstance(out, Mean) else MEAN
    if checked.n is None:
        raise ValueError(f"without a batch loss_fn must return a scalar, got shape {total.shape}.")
    if total.shape != (checked.n,):
        fix = ""
        if total.ndim == 1 and total.size > checked.n and total.size % checked.n == 0:
            fix = (
                " For the mean over tokens return loss.mean(outputs, targets) of one of flatjax's "
                "losses, or a flatjax.Mean(total, weight)."
            )
        raise ValueError(
            f"loss_fn must return a scalar or one value per example, shape ({checked.n},), got "
            f"{total.shape}.{fix}"
        )
    return ROWS if isinstance(out, Mean) else LOSSES


def _checked_mean(mean: Mean, n: int | None) -> Any:
    total, weight = mean.total, mean.weight
    for name, part in (("total", total), ("weight", weight)):
        if not hasattr(part, "shape"):
            raise TypeError(f"flatjax.Mean needs an array as its {name}, got {part!r}.")
    if not jnp.issubdtype(total.dtype, jnp.floating):
        raise TypeError(
            f"the total of a flatjax.Mean must be real and floating, got dtype {total.dtype}."
        )
    real = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(weight.dtype, kind) for kind in real):
        raise TypeError(
            f"the weight of a flatjax.Mean must be real numbers, got dtype {weight.dtype}."
        )
    if total.shape != weight.shape or total.shape not in ((), (n,)):
        raise ValueError(
            "flatjax.Mean needs a total and a weight that are both scalars, or both of shape "
            f"({n},), one entry an example: got {total.shape} and {weight.shape}."
        )
    return total
