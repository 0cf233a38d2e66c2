"""The three losses of exponential families in their natural parameter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _trees as trees
from flatjax.losses._base import OutputLoss, Per


@dataclasses.dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(OutputLoss):
    r"""Softmax cross-entropy $-\sum_c t_c \log p_c$ with $p = \mathrm{softmax}(z)$.

    **Sequences, language models, pixels** (outputs with axes between the examples and the classes):
    the loss is by default *per example*, the mean over the unmasked positions of each, so that a
    short sequence counts as much as a long one. That is not the mean over all tokens that language
    models are usually trained with: for it every token must be an example of its own,
    ``softmax_cross_entropy(per="token")``. The two agree where all lengths are equal.

    Targets are integer class ids, shape ``outputs.shape[:-1]``, or probabilities shaped like the
    outputs. Negative ids, the id ``ignore_index`` and all-zero rows of probabilities mask a
    position, in the denominator too. An id beyond the classes makes the loss of its example NaN,
    and all its derivatives. The output Hessian is $(\sum_c t_c)\,(\mathrm{diag}(p) - p p^\top)$.
    Computed in at least float32.

    Attributes:
      ignore_index: a class id that masks a position, such as 255 for void pixels; negative ids do
        in any case.
      label_smoothing: the share $a$ of every target that is spread over all classes evenly,
        $(1 - a) t + a \sum_c t_c / C$ (Szegedy et al. 2016, CVPR). The output Hessian and the
        exact Fisher do not depend on it, and drawn targets are not smoothed.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.losses import softmax_cross_entropy
      >>> softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(3).tolist()
      [1.3860000371932983, 1.3860000371932983]
      >>> tokens = softmax_cross_entropy(per="token")
      >>> tokens(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)).shape
      (6,)
      >>> void = softmax_cross_entropy(ignore_index=255)
      >>> void(jnp.zeros((2, 4)), jnp.array([0, 255], "uint8")).round(3).tolist()
      [1.3860000371932983, 0.0]
    """

    ignore_index: int | None = None
    label_smoothing: float = 0.0

    _name = "softmax_cross_entropy"

    def __post_init__(self):
        super().__post_init__()
        index = self.ignore_index
        if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
            raise TypeError(f"ignore_index must be a class id, an integer, got {index!r}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing!r}.")

    def __call__(
        self,
        outputs: Any = None,
        targets: Any = None,
        *,
        per: Per | None = None,
        ignore_index: int | None = None,
        label_smoothing: float | None = None,
    ) -> Any:
        """The loss of every example; without outputs, a copy of the loss with these options."""
        options = {"per": per, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        changes = {name: value for name, value in options.items() if value is not None}
        if not changes:
            return super().__call__(outputs, targets)
        loss = dataclasses.replace(self, **changes)
        return loss if outputs is None else loss(outputs, targets)

    def check(self, outputs, targets):
        if outputs.ndim < 2:
            raise ValueError(
                f"softmax_cross_entropy needs logits of shape (n, classes), got {outputs.shape}."
            )
        if jnp.issubdtype(targets.dtype, jnp.integer):
            if targets.shape != outputs.shape[:-1]:
                raise ValueError(
                    f"integer targets must have shape {outputs.shape[:-1]} for logits of shape "
                    f"{outputs.shape}, got {targets.shape}."
                )
        elif targets.shape != outputs.shape:
            raise ValueError(
                f"probability targets must have the shape of the logits, {outputs.shape}, got "
                f"{targets.shape}; class ids must be integers, got dtype {targets.dtype}."
            )
        elif self.ignore_index is not None:
            raise ValueError("ignore_index= is for class ids: mask probabilities by rows of zeros.")

    def values(self, outputs, targets):
        logits = outputs.astype(trees.compute_dtype(outputs.dtype))
        log_p = jax.nn.log_softmax(logits)
        a = self.label_smoothing
        if not _are_ids(targets):
            t = targets.astype(logits.dtype)
            if a:
                t = (1 - a) * t + a * t.mean(axis=-1, keepdims=True)
            return -_times(t, log_p).sum(axis=-1)
        ids, nan = self._ids(outputs, targets)
        picked = jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
        if a:
            picked = (1 - a) * picked + a * log_p.mean(axis=-1)
        return -picked * nan.astype(logits.dtype)

    def hessian_values(self, outputs, targets, tangents):
        logits = outputs.astype(trees.compute_dtype(outputs.dtype))
        p, u = jax.nn.softmax(logits), tangents.astype(logits.dtype)
        product = p * u - p * (p * u).sum(axis=-1, keepdims=True)
        if _are_ids(targets):
            return self._ids(outputs, targets)[1].astype(logits.dtype)[..., None] * product
        return targets.astype(logits.dtype).sum(axis=-1, keepdims=True) * product

    def mask(self, outputs, targets):
        dtype = trees.compute_dtype(outputs.dtype)
        if not _are_ids(targets):
            return (targets != 0).any(axis=-1).astype(dtype)
        ids = _signed(targets)
        counted = ids >= 0
        if self.ignore_index is not None:
            counted = counted & (ids != self.ignore_index)
        return counted.astype(dtype)

    def _ids(self, outputs, targets):
        """Ids that exist, and a factor that is NaN where a target that counts does not."""
        ids = _signed(targets)
        exist = (ids >= 0) & (ids < outputs.shape[-1])
        wrong = ~exist & (self.mask(outputs, targets) != 0)
        return jnp.where(exist, ids, jnp.zeros_like(ids)), jnp.where(wrong, jnp.nan, 1.0)

    def sample(self, key, outputs):
        """Class ids drawn from the softmax, shape ``outputs.shape[:-1]``."""
        return jax.random.categorical(key, outputs.astype(trees.compute_dtype(outputs.dtype)))

    def resample(self, key, outputs, targets):
        drawn = self.sample(key, outputs)
        padding = self.mask(outputs, targets) == 0
        if _are_ids(targets):  # a target that does not exist stays one, and gives NaN
            wrong = jnp.isnan(self._ids(outputs, targets)[1])
            drawn = jnp.where(wrong, jnp.full_like(drawn, outputs.shape[-1]), drawn)
        return jnp.where(padding, jnp.full_like(drawn, -1), drawn)

    def of_draws(self):
        # A drawn id that happens to be `ignore_index` is a class like any other, and the score is
        # that of the distribution it was drawn from.
        return dataclasses.replace(self, ignore_index=None, label_smoothing=0.0)


class SquaredError(OutputLoss):
    r"""Half the squared error $\tfrac12 \lVert z - t \rVert^2$, summed over the features.

    The negative log-likelihood of a Gaussian of unit variance, up to a constant; its output Hessian
    is the identity. Targets are shaped like the outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.losses import squared_error
      >>> squared_error(jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
      [1.5, 1.5]
    """

    _name = "squared_error"

    def check(self, outputs, targets):
        _same_shape("squared_error", outputs, targets)

    def values(self, outputs, targets):
        dtype = trees.compute_dtype(outputs.dtype)
        half_square = jnp.square(outputs.astype(dtype) - targets.astype(dtype)) / 2
        return half_square if outputs.ndim == 1 else half_square.sum(axis=-1)

    def hessian_values(self, outputs, targets, tangents):
        return tangents.astype(trees.compute_dtype(outputs.dtype))

    def sample(self, key, outputs):
        """Outputs plus standard normal noise."""
        return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


class SigmoidBinaryCrossEntropy(OutputLoss):
    r"""Binary cross-entropy of logits, summed over the features (independent labels).

    $\ell = \sum_c \mathrm{softplus}(z_c) - t_c z_c$ with targets in $[0, 1]$ shaped like the
    outputs; the output Hessian is $\mathrm{diag}(\sigma(z)(1 - \sigma(z)))$. Of another target,
    such as -1, both are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.losses import sigmoid_binary_cross_entropy
      >>> sigmoid_binary_cross_entropy(jnp.zeros((1, 2)), jnp.ones((1, 2))).round(3).tolist()
      [1.3860000371932983]
    """

    _name = "sigmoid_binary_cross_entropy"

    def check(self, outputs, targets):
        _same_shape("sigmoid_binary_cross_entropy", outputs, targets)

    def values(self, outputs, targets):
        logits = outputs.astype(trees.compute_dtype(outputs.dtype))
        # As two terms, of which an infinite logit on the right side leaves zero.
        t = targets.astype(logits.dtype)
        values = _times(t, jax.nn.softplus(-logits)) + _times(1 - t, jax.nn.softplus(logits))
        values = values * _nan_outside(t)
        return values if outputs.ndim == 1 else values.sum(axis=-1)

    def hessian_values(self, outputs, targets, tangents):
        logits = outputs.astype(trees.compute_dtype(outputs.dtype))
        p, nan = jax.nn.sigmoid(logits), _nan_outside(targets.astype(logits.dtype))
        return p * jax.nn.sigmoid(-logits) * tangents.astype(logits.dtype) * nan

    def sample(self, key, outputs):
        """Labels 0 or 1 drawn with probability ``sigmoid(outputs)``."""
        p = jax.nn.sigmoid(outputs.astype(trees.compute_dtype(outputs.dtype)))
        return jax.random.bernoulli(key, p).astype(outputs.dtype)


def _nan_outside(targets):
    """A factor that is NaN where a target is no probability."""
    return jnp.where((targets >= 0) & (targets <= 1), 1.0, jnp.nan).astype(targets.dtype)


def _are_ids(targets):
    return jnp.issubdtype(targets.dtype, jnp.integer)


def _signed(targets):
    """Class ids in a signed type that holds them and every number of classes."""
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.unsignedinteger):
        most = min(jnp.iinfo(targets.dtype).max, jnp.iinfo(jnp.int32).max)
        return jnp.minimum(targets, jnp.asarray(most, targets.dtype)).astype(jnp.int32)
    return targets if targets.dtype.itemsize >= 4 else targets.astype(jnp.int32)


def _times(factor, values):
    """The product, zero where the factor is, however infinite the value."""
    return jnp.where(factor != 0, factor * values, jnp.zeros_like(values))


def _same_shape(name, outputs, targets):
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{name} needs targets shaped like the outputs, {outputs.shape}, got {targets.shape}."
        )


softmax_cross_entropy = SoftmaxCrossEntropy()
squared_error = SquaredError()
sigmoid_binary_cross_entropy = SigmoidBinaryCrossEntropy()
