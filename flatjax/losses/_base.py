"""The output-loss protocol: positions reduced to examples."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax.losses import _blockwise as blockwise
from flatjax.losses._linear_head import LinearHead
from flatjax.losses._mean import Mean

Per = Literal["example", "token"]


@dataclasses.dataclass(frozen=True)
class OutputLoss:
    """Base of the output losses; subclass it to add one.

    A subclass implements ``values``, ``hessian_values`` and ``sample`` at the level of single
    positions (tokens); this class reduces positions to examples. Outputs have shape
    ``(n, features)`` or, for sequences, ``(n, *positions, features)``.

    Attributes:
      per: ``"example"``: the loss of an example is the mean over its unmasked positions.
        ``"token"``: every position is an example of its own, and the leading axis of the values
        becomes ``n * positions``.
    """

    per: Per = "example"

    _name: ClassVar[str] = ""  # what users write, of a loss here

    def __post_init__(self):
        checks.check_choice("per", self.per, ("example", "token"))

    @property
    def closed_form(self) -> bool:
        """Whether the output Hessian has a closed form, not an automatic derivative."""
        return True

    @property
    def masks(self) -> bool:
        """Whether targets may mark positions as padding: whether it has a ``mask`` of its own."""
        return type(self).mask is not OutputLoss.mask

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = [
            f"{f.name}={values[f.name]!r}"
            for f in dataclasses.fields(self)
            if values[f.name] != f.default
        ]
        name = vars(type(self)).get("_name") or type(self).__name__
        return f"{name}({', '.join(given)})" if given else name

    # What a subclass implements, position by position.

    def values(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of every position, shape ``positions_shape(outputs)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement `values`.")

    def hessian_values(
        self, outputs: jax.Array, targets: jax.Array, tangents: jax.Array
    ) -> jax.Array:
        """The output-Hessian product of every position, shaped like ``outputs``."""
        raise NotImplementedError(f"{type(self).__name__} must implement `hessian_values`.")

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """Targets drawn from the predictive distribution that the outputs parametrise."""
        raise TypeError(
            f"{type(self).__name__} cannot sample targets: implement `sample(key, outputs)`."
        )

    def mask(self, outputs: Any, targets: jax.Array) -> jax.Array:
        """One where a position counts, zero where it is padding.

        Args:
          outputs: the model's outputs, their ``ShapeDtypeStruct``, or a [`LinearHead`][]: only the
            shape may matter.
          targets: the targets.

        Returns:
          An array of shape ``positions_shape(outputs)``.
        """
        return jnp.ones(positions_shape(outputs), trees.compute_dtype(outputs.dtype))

    def check(self, outputs: jax.Array, targets: jax.Array) -> None:
        """Raise ``ValueError`` or ``TypeError`` unless the shapes fit."""

    # What users and operators call.

    def __call__(self, outputs: Any = None, targets: Any = None, *, per: Per | None = None) -> Any:
        """The loss of every example, zero for padding: the mean over a batch is that of ``mean``.

        Args:
          outputs: the model's outputs, leading axis ``n``: an array, or a [`LinearHead`][] in place
            of it.
          targets: the targets.
          per: overrides the attribute. With ``per`` alone, a copy of the loss that has it:
            ``softmax_cross_entropy(per="token")``; with nothing, the loss itself.

        Returns:
          Shape ``(n,)``, or ``(n * positions,)`` with ``per="token"``.
        """
        if per is not None:
            loss = dataclasses.replace(self, per=per)
            return loss if outputs is None else loss(outputs, targets)
        if outputs is None and targets is None:
            return self
        self._check(outputs, targets)
        values = self._position_values(outputs, targets)
        values = values * self.position_weights(outputs, targets)
        if self.per == "token":
            return values.reshape(-1)
        return values.reshape(values.shape[0], -1).sum(axis=1)

    def mean(self, outputs: Any, targets: jax.Array) -> Mean:
        """The mean loss over a batch, in which padding does not count: for a ``loss_fn``.

        It is the mean whose Gauss-Newton matrix is that of [`ggn`][]: over the examples that are
        not all padding, or with ``per="token"`` over the tokens that are none. The plain mean of
        the values of the loss divides by all of them.

        Args:
          outputs: the model's outputs, leading axis ``n``.
          targets: the targets.

        Returns:
          A [`Mean`][] with one entry an example, ``total`` and ``weight`` of shape ``(n,)`` and at
          least float32: every operator and transform that takes a loss function takes it, however
          the data are cut. ``.value`` is the scalar.

        Raises:
          ValueError: for outputs and targets whose shapes do not fit.

        Example:
          >>> import jax.numpy as jnp
          >>> import flatjax
          >>> loss = flatjax.softmax_cross_entropy(per="token")
          >>> targets = jnp.array([[0, 1, 2], [3, -100, -100]])  # 4 tokens, 2 of padding
          >>> mean = loss.mean(jnp.zeros((2, 3, 4)), targets)
          >>> mean.weight.tolist()
          [3.0, 1.0]
          >>> float(mean.value)  # log 4
          1.3862943649291992
          >>> loss_fn = lambda w, batch: loss.mean(batch[0] @ w, batch[1])
          >>> batch = jnp.ones((2, 3, 5)), targets
          >>> H = flatjax.hessian(loss_fn, jnp.zeros((5, 4)), batch, chunk_size=1)
          >>> float(jnp.trace(H.to_dense()))  # |x|^2 * sum_c p_c (1 - p_c) = 5 * 3/4
          3.75
        """
        values, weights = self(outputs, targets), self.row_weights(outputs, targets)
        total, weight = (a.reshape(outputs.shape[0], -1).sum(axis=1) for a in (values, weights))
        return Mean(total, weight)

    def hessian_product(self, outputs: Any, targets: jax.Array, tangents: Any) -> Any:
        """The product with the Hessian of every example's loss with respect to its outputs.

        Args:
          outputs: the model's outputs.
          targets: the targets.
          tangents: an array like ``outputs``, or a head like it.

        Returns:
          An array like ``tangents``; of a head, whose kernel all examples share, the sum of their
          products, in at least float32.
        """
        self._check(outputs, targets)
        if isinstance(outputs, LinearHead):
            return self._summed("hessian_product", outputs, targets, tangents)
        tangents, _ = self._cleaned(outputs, targets, tangents)
        outputs, there = self._cleaned(outputs, targets, outputs)
        product = self.hessian_values(outputs, targets, tangents)
        if product.shape != tangents.shape:
            raise ValueError(
                f"{type(self).__name__}.hessian_values must return an array like its tangents, of "
                f"shape {tangents.shape}, got {product.shape}."
            )
        return self._weighted(outputs, targets, product, there).astype(tangents.dtype)

    def gradient_product(self, outputs: Any, targets: jax.Array, tangents: Any) -> Any:
        r"""Like ``hessian_product``, with $r r^\top$, $r = \partial \ell_i / \partial z_i$."""
        if isinstance(outputs, LinearHead):
            return self._summed("gradient_product", outputs, _draw(targets), tangents)
        tangents, _ = self._cleaned(outputs, targets, tangents)
        r = jax.grad(lambda z: self(z, targets).sum())(outputs)
        r, u = (a.reshape(a.shape[0], -1) for a in (r, tangents.astype(r.dtype)))
        product = r * (r * u).sum(axis=1, keepdims=True)
        return product.reshape(tangents.shape).astype(tangents.dtype)

    def score_product(self, outputs: Any, targets: jax.Array, tangents: Any) -> Any:
        r"""Like ``gradient_product``, with the gradient of every position by itself.

        Its expectation over targets from ``sample`` is ``hessian_product``. The positions of a
        sequence are drawn independently, so the products of two different positions, which have
        mean zero, are left out.
        """
        if isinstance(outputs, LinearHead):
            return self._summed("score_product", outputs, _draw(targets), tangents)
        tangents, _ = self._cleaned(outputs, targets, tangents)
        outputs, there = self._cleaned(outputs, targets, outputs)
        scores = jax.grad(lambda z: self.checked_values(z, targets).sum())(outputs)
        # The padding goes here, not after the product: XLA of jaxlib 0.10 adds up a mapped product
        # that is selected over the draws wrongly, at every level of optimisation.
        scores = scores if there is None else jnp.where(_over(there, scores), scores, 0)
        inner = scores * tangents.astype(scores.dtype)
        if outputs.ndim > 1:
            inner = inner.sum(axis=-1, keepdims=True)
        return self._weighted(outputs, targets, scores * inner, None).astype(tangents.dtype)

    def _check(self, outputs, targets):
        if isinstance(outputs, LinearHead):
            outputs.check()
        if targets is None:
            raise TypeError(
                "the targets are None: pass an array. Where it only says what is padding, as for "
                "an exact or sampled Fisher matrix, targets that exist will do."
            )
        self.check(outputs, targets)

    def _position_values(self, outputs, targets):
        """The loss of every position, zero at the padding."""
        if isinstance(outputs, LinearHead):
            there = self.mask(outputs, targets) != 0
            return blockwise.values(self, outputs, targets, there)
        outputs, there = self._cleaned(outputs, targets, outputs)
        values = self.checked_values(outputs, targets)
        return values if there is None else jnp.where(there, values, jnp.zeros_like(values))

    def checked_values(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """``values``, one of which there must be a position: others would be broadcast."""
        values, shape = self.values(outputs, targets), positions_shape(outputs)
        if values.shape != shape:
            raise ValueError(
                f"{type(self).__name__}.values must return one value per position, shape {shape} "
                f"for outputs of shape {outputs.shape}, got {values.shape}."
            )
        return values

    def _summed(self, kind, head, targets, tangents):
        ones = jnp.ones(head.shape[:1], trees.compute_dtype(head.dtype))
        return blockwise.product(self, kind, head, targets, tangents, ones)

    def _cleaned(self, outputs, targets, array):
        """``array`` with zeros at the padding, whatever it holds there; and where it is none."""
        if not self.masks:
            return array, None
        there = self.mask(outputs, targets) != 0
        return jnp.where(_over(there, array), array, jnp.zeros_like(array)), there

    def _weighted(self, outputs, targets, product, there):
        scaled = _over(self.position_weights(outputs, targets), product)
        product = scaled * product.astype(scaled.dtype)
        if there is None:
            return product
        return jnp.where(_over(there, product), product, jnp.zeros_like(product))

    def position_weights(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The factor of every position in the loss of its example: ``mask / count``."""
        mask = self.mask(outputs, targets)
        if self.per == "token" or mask.ndim == 1:
            return mask
        axes = tuple(range(1, mask.ndim))
        return mask / jnp.maximum(mask.sum(axis=axes, keepdims=True), jnp.ones((), mask.dtype))

    def row_weights(self, outputs: Any, targets: jax.Array) -> jax.Array:
        """One for every value that counts in the mean over a batch, zero for padding.

        Args:
          outputs: the model's outputs, or their ``ShapeDtypeStruct``.
          targets: the targets.

        Returns:
          The ``mask`` with ``per="token"``; else whether an example has any token, ``(n,)``.
        """
        mask = self.mask(outputs, targets)
        return mask if self.per == "token" else mask.reshape(mask.shape[0], -1).max(axis=1)

    def resample(self, key: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Like ``sample``, keeping the padding of ``targets``.

        Raises:
          ValueError: if the loss has a ``mask``, and draws have another shape than ``targets``.
        """
        drawn = self.sample(key, outputs)
        if not self.masks:
            return drawn
        there = self.mask(outputs, targets) != 0

        def kept(new, old):
            if new.shape != old.shape:
                raise ValueError(
                    f"{type(self).__name__}.sample draws targets of shape {new.shape}, and the "
                    f"batch, whose targets mark padding, has them of {old.shape}: implement "
                    "`resample(key, outputs, targets)`, which keeps the padding."
                )
            return jnp.where(_over(there, new), new, old.astype(new.dtype))

        return jax.tree.map(kept, drawn, targets)

    def of_draws(self) -> "OutputLoss":
        """The loss for targets from ``resample``, which mark padding in the loss's own way."""
        return self

    def rows(self, array: Any, positions: tuple[int, ...]) -> Any:
        """``array`` with one leading row an example: the positions flattened if ``per="token"``.

        Of a head it is the features.
        """
        if self.per == "example":
            return array
        if isinstance(array, LinearHead):
            return dataclasses.replace(array, features=self.rows(array.features, positions))
        return array.reshape(math.prod(positions), *array.shape[len(positions) :])


def positions_shape(outputs: Any) -> tuple[int, ...]:
    """The shape of the positions: all axes but the features; ``(n,)`` for outputs ``(n,)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.losses._base import positions_shape
      >>> positions_shape(jnp.zeros((2, 5, 3)))
      (2, 5)
    """
    return outputs.shape if outputs.ndim == 1 else outputs.shape[:-1]


def _draw(targets):
    return jax.tree.map(lambda a: a[None], targets)


def _over(positions, array):
    """An array of positions with axes of length one for the features of ``array``."""
    return positions.reshape(positions.shape + (1,) * (array.ndim - positions.ndim))
