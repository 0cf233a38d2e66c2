"""A user's own loss: a plain function, or an object with more methods."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from flatjax import _fingerprints as fingerprints
from flatjax import _functions as functions
from flatjax import _nodes as nodes
from flatjax.losses._base import OutputLoss


@nodes.register
@dataclasses.dataclass(frozen=True, repr=False)
class FunctionLoss(OutputLoss):
    """A user's loss: a function ``(outputs, targets) -> (n,)``, or an object with more methods.

    Without a ``hessian_product`` of its own the output Hessian is differentiated, which costs about
    a third more temporary memory than a closed form; without ``sample`` it has no sampled Fisher.

    Attributes:
      per: always ``"example"``.
      fn: the function or object.
      product: its ``hessian_product``, or ``None``.
      sampler: its ``sample``, or ``None``.
    """

    per: Any = dataclasses.field(default="example", metadata={"static": True})
    fn: Any = None
    product: Any = None
    sampler: Any = None

    def __repr__(self) -> str:
        return getattr(self.fn, "name", None) or getattr(
            self.fn, "__name__", type(self.fn).__name__
        )

    @property
    def closed_form(self) -> bool:
        """Whether the user gave a ``hessian_product``."""
        return self.product is not None

    def __call__(self, outputs=None, targets=None, *, per=None):
        """The user's values, checked to be one an example."""
        if per is not None:
            raise ValueError("`per` needs one of flatjax's losses; a function decides it itself.")
        values = self.fn(outputs, targets)
        if values.ndim != 1:
            raise ValueError(
                "an output loss must return one value per example, shape (n,), got "
                f"{values.shape}: do not reduce over the batch."
            )
        return values

    def hessian_product(self, outputs, targets, tangents):
        if self.closed_form:
            return self.product(outputs, targets, tangents.astype(outputs.dtype))
        gradient = jax.grad(lambda z: self(z, targets).sum())
        return jax.jvp(gradient, (outputs,), (tangents,))[1]

    def at(self, outputs: Any, targets: Any) -> "FunctionLoss":
        """Where its functions are followed, the loss to be called at these shapes, too."""
        fn = self.fn.at(outputs, targets)
        product = None if self.product is None else self.product.at(outputs, targets, outputs)
        return dataclasses.replace(self, fn=fn, product=product)

    def score_product(self, outputs, targets, tangents):
        """``gradient_product``: a function's examples have no positions."""
        return self.gradient_product(outputs, targets, tangents)

    def sample(self, key, outputs):
        if self.sampler is not None:
            return self.sampler(key, outputs)
        raise TypeError(
            "this loss cannot sample targets: use one of flatjax's losses, or an object with "
            "`sample(key, outputs)` beside `__call__` and `hessian_product`."
        )


def as_loss(loss: OutputLoss | Callable[[Any, Any], jax.Array]) -> OutputLoss:
    """An [`OutputLoss`][] from a loss, a plain function, or an object with the same methods.

    A function is ``(outputs, targets) -> (n,)``; an object has ``__call__`` and, if it can,
    ``hessian_product`` and ``sample``.

    Raises:
      TypeError: if ``loss`` is not callable, or a class in place of an instance of it.

    Example:
      >>> from flatjax.losses._own import as_loss
      >>> as_loss(lambda z, t: (z - t) ** 2).closed_form
      False
    """
    if isinstance(loss, type) and issubclass(loss, OutputLoss):
        raise TypeError(f"loss must be an instance: {loss.__name__}() in place of the class.")
    if not callable(loss):
        raise TypeError(
            "loss must be an output loss such as flatjax.softmax_cross_entropy or a function "
            f"(outputs, targets) -> (n,), got {type(loss).__name__}."
        )
    if isinstance(loss, OutputLoss):
        return loss
    product, sampler = getattr(loss, "hessian_product", None), getattr(loss, "sample", None)
    return FunctionLoss(fn=loss, product=product, sampler=sampler)


def follow_loss(loss: OutputLoss, *signatures: tuple[Any, Any], key: Any = None) -> Any:
    """A loss as a pytree whose leaves are the arrays that its functions capture.

    Args:
      loss: the loss.
      *signatures: outputs and targets, arrays or ``jax.ShapeDtypeStruct``, that it is called with.
      key: a PRNG key, where targets are drawn, one example at a time.

    Returns:
      A ``FunctionLoss`` whose functions are followed; any other loss as a
      ``functions.Constant``.
    """
    if not isinstance(loss, FunctionLoss):
        own = type(loss).__module__.partition(".")[0] == "flatjax"
        return functions.Constant(loss, None if own else fingerprints.of_state(loss))
    product, sampler = loss.product, loss.sampler
    fn = functions.follow(loss.fn, *signatures)
    if product is not None:
        product = functions.follow(product, *((z, t, z) for z, t in signatures))
    if sampler is not None and key is not None:
        one = lambda z: jax.eval_shape(lambda a: a[:1], z)  # noqa: E731
        sampler = functions.follow(sampler, (key, one(signatures[0][0])))
    return FunctionLoss(fn=fn, product=product, sampler=sampler if key is not None else None)
