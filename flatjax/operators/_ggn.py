"""Operators of the form ``J^T M J`` with J the Jacobian of the model's outputs.

The generalised Gauss-Newton matrix (M the output Hessian of the loss) and the three Fisher
matrices differ in M only.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax import losses
from flatjax.losses._base import positions_shape
from flatjax.losses._own import FunctionLoss, as_loss, follow_loss
from flatjax.operators import _derivatives as derivatives
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import (
    as_arrays,
    check_arguments,
    check_output,
    split_batch,
)
from flatjax.operators._base import operator, static
from flatjax.operators._callables import first_examples, follow, for_examples, of_part
from flatjax.operators._chunks import Chunked, chunked
from flatjax.operators._data import DataOperator, sliced, sliced_weights
from flatjax.operators._draws import drawn
from flatjax.operators._output_product import OutputProduct, loss_of


@operator
class GaussNewton(DataOperator):
    """``J^T M J / W``; made by [`ggn`][] and [`fisher`][], of inputs that count alone."""

    params: Any
    inputs: Any
    targets: Any
    args: tuple
    weights: jax.Array | None
    draws: Any  # None for the output Hessian, else targets with a leading axis of draws
    model_fn: Any
    held_loss: Any
    outputs: Any = static()  # (shape, dtype) of the model's outputs
    kind: Any = static()  # of OutputProduct
    axis_name: Any = static(default=None)
    precision: Any = static(default="highest")
    weight_size: Any = None  # of `size_of`

    @property
    def rule(self):
        return OutputProduct(self.held_loss, self.kind)

    @property
    def loss(self) -> losses.OutputLoss:
        """The output loss."""
        return loss_of(self.held_loss)

    @property
    def positions(self):
        """The shape of the positions of the model's outputs: ``(n,)`` without a sequence."""
        return positions_shape(jax.ShapeDtypeStruct(*self.outputs))

    def rows(self, tree):
        """A tree of outputs or targets with one leading row an example."""
        one = lambda a: self.loss.rows(a, self.positions)  # noqa: E731
        return jax.tree.map(one, tree, is_leaf=lambda a: isinstance(a, losses.LinearHead))

    @property
    def example_weights(self):
        """One weight a row: the user's, times one where any position is no padding."""
        weights = _row_weights(self.loss, self.outputs, self.targets, self.weights)
        return weights.astype(trees.dtype(self.params))

    def model(self, params):
        """The outputs of the model at ``params``."""
        return self.model_fn(params, self.inputs, *self.args)

    @property
    def scale(self):
        rows = self.examples * self.rows_per_example
        return rows if self.weight_size is None else rows * self.weight_size

    @property
    def examples(self):
        return self.outputs[0][0]

    @property
    def rows_per_example(self):
        """How many rows of the Jacobian's blocks an example of the batch makes."""
        return math.prod(self.positions[1:]) if self.loss.per == "token" else 1

    def for_chunks(self, size: int) -> "GaussNewton":
        """The operator with its functions followed for chunks of this size, too."""
        params = collectives.varying(self.params, self.axis_name)
        fn = for_examples(self.model_fn, params, self.inputs, self.args, size, self.precision)
        targets = self.rows(self.targets)
        if self.draws is not None:
            targets = jax.tree.map(lambda a: a[0], self.draws)
        held = self.held_loss
        if isinstance(held, FunctionLoss):
            held = held.at(*first_examples((jax.ShapeDtypeStruct(*self.outputs), targets), size))
        return dataclasses.replace(self, model_fn=fn, held_loss=held)

    def part(self, start, size, keep):
        shape, dtype = self.outputs
        rows = self.rows_per_example
        return dataclasses.replace(
            self,
            inputs=sliced(self.inputs, start, size),
            targets=sliced(self.targets, start, size),
            weights=sliced_weights(self.weights, start, size, keep),
            draws=sliced(self.draws, start * rows, size * rows, axis=1),
            outputs=((size, *shape[1:]), dtype),
        )

    def restrict(self, selection):
        return of_part(self, "model_fn", selection)

    def _facts(self):
        facts = {"model": self.model_fn.name, "loss": repr(self.loss), **super()._facts()}
        if self.draws is not None:
            facts["kind"] = "sampled" if self.kind == "score_product" else "empirical"
        return facts

    def linear(self):
        params = collectives.varying(self.params, self.axis_name)
        outputs, linear = derivatives.linear_map(lambda p: self.rows(self.model(p)), params)
        targets = self.rows(self.targets) if self.draws is None else self.draws
        return linear, (outputs, targets, self.example_weights, self.scale)


def _row_weights(loss, outputs, targets, weights):
    outputs = jax.ShapeDtypeStruct(*outputs)
    rows = loss.row_weights(outputs, targets).astype(trees.compute_dtype(outputs.dtype))
    if weights is not None:
        spare = (1,) * (rows.ndim - weights.ndim)
        rows = rows.astype(weights.dtype) * weights.reshape(*weights.shape, *spare)
    return rows.reshape(-1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights_of_examples(loss, outputs, targets, weights):
    return _row_weights(loss, outputs, targets, weights).reshape(outputs[0][0], -1)


def ggn(
    model_fn: Callable[..., jax.Array],
    loss: losses.OutputLoss | Callable[[Any, Any], jax.Array],
    params: Any,
    batch: tuple[Any, Any],
    *args: Any,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
    chunk_size: int | None = None,
) -> GaussNewton | Chunked:
    r"""The generalised Gauss-Newton matrix of the mean loss over a batch.

    $$G = \frac{1}{W} \sum_i w_i J_i^\top H_i J_i, \qquad
    J_i = \partial z_i / \partial \theta, \quad H_i = \partial^2 \ell_i / \partial z_i^2.$$

    Positive semi-definite for a convex output loss, and equal to the Hessian for a model that is
    linear in its params (Schraudolph 2002, Neural Computation 14(7)). A product is one forward-mode
    and one reverse-mode pass with the loss's closed-form output Hessian between: about 1.7
    gradients, 1.35 after ``linearize()``. For a model without a forward-mode rule
    (``jax.custom_vjp``, most fused attention kernels) the forward pass is made of two reverse ones,
    and the operator's ``method`` is ``"double-vjp"`` instead of ``"jvp"``; where the backward pass
    has no derivative either, by central differences, ``"central-difference"``.

    **Language models**: by default the mean is over the unmasked tokens of each sequence, then over
    the sequences. Training usually takes the mean over all tokens, which is another matrix where
    lengths differ: ``softmax_cross_entropy(per="token")``.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, the outputs, leading axis ``n``; for many
        classes a [`LinearHead`][] in place of logits.
      loss: an output loss from ``flatjax.losses``, or a function ``(outputs, targets) -> (n,)``.
      params: a pytree of floating arrays.
      batch: a pair ``(inputs, targets)``.
      *args: model state, dropout keys, anything else the model takes; leaves of the operator.
      weights: per-example weights or a padding mask, shape ``(n,)``; with ``per="token"`` also
        ``(n, positions)``. An example of weight zero, or whose targets are all padding, does not
        count, whatever it holds.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples per pass, ``None`` for one pass over all; see [`hessian`][].

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: for params that are not floating, a batch that is no pair, or a loss that is not
        callable.
      ValueError: for an empty batch or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros(2)
      >>> G = flatjax.ggn(lambda w, x: x @ w, flatjax.squared_error, jnp.zeros(2), (x, y))
      >>> (G @ jnp.ones(2)).tolist()  # x'x / 2
      [0.5, 2.0]
    """
    op = _gauss_newton(model_fn, loss, params, batch, args, weights, axis_name, precision)
    return chunked(op, chunk_size)


def fisher(
    model_fn: Callable[..., jax.Array],
    loss: losses.OutputLoss | Callable[[Any, Any], jax.Array],
    params: Any,
    batch: tuple[Any, Any],
    *args: Any,
    kind: str = "exact",
    key: jax.Array | None = None,
    num_samples: int = 1,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
    chunk_size: int | None = None,
) -> GaussNewton | Chunked:
    r"""The Fisher information of the model's predictive distribution, in one of three kinds.

    $$F = \frac{1}{W} \sum_i w_i \, \mathbb{E}_{y \sim p_\theta(\cdot | x_i)}
    \left[ \nabla \log p_\theta(y | x_i) \, \nabla \log p_\theta(y | x_i)^\top \right].$$

    - ``"exact"``: the expectation in closed form. Equal to the GGN, because the losses here are
      exponential families in their natural parameter.
    - ``"sampled"``: the expectation over ``num_samples`` targets an example, drawn once, now, so
      that products are deterministic. Unbiased. A draw depends on the key and on the global index
      of the example only, not on the number of devices.
      Positions of a sequence are drawn independently of each other.
    - ``"empirical"``: the given targets instead of an expectation. Not the Fisher information, and
      no estimate of it (Kunstner et al. 2019, arXiv:1905.12558); it is the uncentred second moment
      of the per-example gradients.

    A product costs about 1.7 gradients, 1.35 after ``linearize()``.

    **Language models**: the mean is over sequences unless ``per="token"``; see [`ggn`][].

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, the outputs, leading axis ``n``.
      loss: an output loss from ``flatjax.losses``; for ``"exact"`` one with a closed-form
        ``hessian_product``, for ``"sampled"`` one with ``sample``.
      params: a pytree of floating arrays.
      batch: a pair ``(inputs, targets)``; targets are used by ``"empirical"`` and for their
        padding.
      *args: model state, dropout keys, anything else the model takes; leaves of the operator.
      kind: ``"exact"``, ``"sampled"`` or ``"empirical"``.
      key: the PRNG key of the draws; ``"sampled"`` needs one, and only it.
      num_samples: draws an example.
      weights: per-example weights or a padding mask, as in [`ggn`][].
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples per pass, ``None`` for one pass over all; see [`hessian`][].

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: for params that are not floating, a batch that is no pair, or a loss that lacks
        what ``kind`` needs.
      ValueError: for an unknown kind, a missing or unused key, ``num_samples < 1``, an empty batch
        or shapes that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> x, y = jnp.ones((4, 2)), jnp.zeros(4, int)
      >>> W = jnp.zeros((2, 3))
      >>> F = flatjax.fisher(lambda w, x: x @ w, flatjax.softmax_cross_entropy, W, (x, y))
      >>> float(jnp.trace(F.to_dense()))  # |x|^2 * sum_c p_c (1 - p_c) = 2 * 2/3
      1.3333333730697632
    """
    _check_order(model_fn)
    checks.check_choice("kind", kind, ("exact", "sampled", "empirical"))
    if (key is not None) != (kind == "sampled"):
        raise ValueError('kind="sampled" needs key=, and the other kinds take none.')
    checks.check_count("num_samples", num_samples)
    loss = as_loss(loss)
    if kind == "exact" and not loss.closed_form:
        raise TypeError(
            "the exact Fisher needs the loss's distribution: use one of flatjax's losses, or an "
            "object with a `hessian_product`; for a bare function use flatjax.ggn."
        )
    op = _gauss_newton(model_fn, loss, params, batch, args, weights, axis_name, precision, key)
    if kind == "empirical":
        draws = jax.tree.map(lambda a: a[None], op.rows(op.targets))
        op = dataclasses.replace(op, draws=draws, kind="gradient_product")
    elif kind == "sampled":
        draws = drawn(op, key, num_samples, chunk_size)
        outputs = jax.ShapeDtypeStruct(*op.outputs)
        held_loss = follow_loss(loss, (outputs, jax.tree.map(lambda a: a[0], draws)))
        op = dataclasses.replace(op, draws=draws, kind="score_product", held_loss=held_loss)
    return chunked(op, chunk_size)


def _check_order(model_fn):
    """Raise where the output loss stands in the place of the model."""
    if isinstance(model_fn, losses.OutputLoss):
        raise TypeError(
            f"model_fn is the output loss {type(model_fn).__name__}: the order is (model_fn, loss, "
            "params, batch)."
        )


def _gauss_newton(model_fn, loss, params, batch, args, weights, axis_name, precision, key=None):
    _check_order(model_fn)
    params, batch, args = as_arrays((params, batch, args))
    inputs, targets = split_batch(batch)
    loss = as_loss(loss)
    token_weights = weights is not None and loss.per == "token" and jnp.ndim(weights) > 1
    checked = check_arguments(
        params, batch, weights, axis_name, precision, args=args, token_weights=token_weights
    )
    model_fn = follow(
        model_fn, "model_fn", params, inputs, args,
        axis_name=axis_name, precision=precision, whole=batch,
    )  # fmt: skip
    outputs = model_fn.out
    if isinstance(outputs, losses.LinearHead) and isinstance(loss, FunctionLoss):
        raise TypeError(
            "a function is no loss of a LinearHead, which has no logits: use one of flatjax's "
            "losses, or return head.logits()."
        )
    check_output("model_fn", outputs)
    if outputs.shape[:1] != (checked.n,):
        raise ValueError(
            f"model_fn must return one row an example, leading axis {checked.n}, got shape "
            f"{outputs.shape}."
        )
    # Shapes alone: JAX takes none that vary over some of the axes of a mesh.
    bare = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (outputs, targets))
    values = jax.eval_shape(loss, *bare)
    if loss.per == "example" and values.shape != (checked.n,):
        raise ValueError(
            f"the loss must return one value per example, shape ({checked.n},), got {values.shape}."
        )
    if checked.weights is not None:
        allowed = positions_shape(outputs) if token_weights else (checked.n,)
        if checked.weights.shape != allowed:
            raise ValueError(f"weights must have shape {allowed}, got {checked.weights.shape}.")
    weights = checked.weights
    if loss.masks:
        weights = _weights_of_examples(
            loss, (outputs.shape, outputs.dtype), targets, checked.weights
        )
        weighting.check_total(weights, "all targets are padding, or of weight zero")
    inputs = weighting.with_copies(inputs, weights)
    return GaussNewton(
        params, inputs, targets, args, checked.weights, None, model_fn,
        follow_loss(loss, (outputs, targets), key=key),
        (outputs.shape, outputs.dtype), "hessian_product", axis_name, precision,
        weighting.size_of(checked.weights),
    )  # fmt: skip
