"""Operators over a whole data set, streamed batch by batch from the host."""

from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any

import jax
import numpy as np

from flatjax import _checks as checks
from flatjax import _convolutions as convolutions
from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax.operators import _normalisers as normalisers
from flatjax.operators import _sums as sums
from flatjax.operators import _weighting as weighting
from flatjax.operators._base import OnHost
from flatjax.operators._data import DataOperator
from flatjax.operators._maps import described


class Stream(OnHost):
    """The weighted mean of one operator over all batches; made by [`over_batches`][].

    Not a pytree: the batches live on the host, and tracing over a product is a TypeError. Nothing
    of one pass is kept for the next: a product is that of the batches and params it meets.
    """

    def __init__(
        self,
        make_operator: Callable[[Any], DataOperator],
        batches: Iterable[Any],
        *,
        check: bool = True,
        progress: bool = False,
        callback: watching.Callback | None = None,
    ):
        self._make, self._batches, self._check = make_operator, batches, check
        self._progress, self._callback = progress, callback
        first = next(iter(self._operators()), None)
        if first is None:
            raise ValueError("batches is empty: over_batches needs at least one batch.")
        self._structure, self._first = first.structure, described(first)

    @property
    def structure(self):
        return self._structure

    def restrict(self, selection):
        def make(batch) -> Any:
            return self._make(batch).restrict(selection)

        return Stream(
            make, self._batches, check=self._check,
            progress=self._progress, callback=self._callback,
        )  # fmt: skip

    def _operators(self):
        first: Any = None
        op: Any = None
        memory: dict[Any, Any] = {}
        for batch in self._batches:
            with weighting.part_of_the_data(), functions.one_moment(memory):
                op = self._make(batch)
            if not isinstance(op, DataOperator):
                raise TypeError(
                    "make_operator must return an operator over one batch (flatjax.hessian, ggn, "
                    f"fisher, gradient_covariance), got {type(op).__name__}: scale or add the "
                    "streams, not the operators of a batch; and make the batches smaller "
                    "instead of chunking them."
                )
            if loops.is_traced(op):
                raise self._traced()
            first = op if first is None and self._check else first
            yield op
        if first is not None:
            # At the end of the first whole pass: batches are often sorted by length, and the first
            # and the last of them differ most.
            self._check = False
            normalisers.check_operators(first, op)

    def _facts(self):
        batches = self._batches
        count = {"batches": f"{len(batches):,}"} if isinstance(batches, Sized) else {}
        return {**count, "first": self._first}

    @property
    def weight(self):
        """The total weight of the examples, by a pass over the batches."""
        return sum(_weight(op) for op in self._operators())

    def mv(self, v):
        if loops.is_traced(v):
            raise self._traced()
        trees.check(v, self.structure)
        total: Any = None
        watch = watching.watch(
            "over_batches", self._progress, self._callback, unit="batches", summary=False
        )
        with watch:
            for number, op in enumerate(self._operators(), 1):
                total = _add_product(op, v, sums.nothing(op) if total is None else total)
                if watch.due(total):
                    self._report(watch, number, total)
        if total is None:
            raise ValueError("batches gave nothing on a second pass: pass a re-iterable object.")
        weighting.check_total(total.weight, "no batch has an example that counts")
        return _mean(total)

    def _report(self, watch, number, total):
        batches: Any = self._batches
        left = len(batches) - number if hasattr(batches, "__len__") else None
        watch.report(number, np.asarray(total.weight), left=left)
        if watch.stopped is not None:
            raise RuntimeError(
                f"the callback has stopped a product after {number} batches, and a part of one is "
                "the product of another operator: stop the function that multiplies, by its own "
                "callback=, max_seconds= or on_interrupt=."
            )


@partial(convolutions.compiled, donate_argnums=2)
def _add_product(op, v, total):
    return sums.together(total, sums.of(op, v))


@jax.jit
def _mean(total):
    return sums.mean(total, None)


@jax.jit
def _weight(op):
    return op.weight


def over_batches(
    make_operator: Callable[[Any], DataOperator],
    batches: Iterable[Any],
    *,
    check: bool = True,
    progress: bool = False,
    callback: watching.Callback | None = None,
) -> Stream:
    """One operator over a whole data set that does not fit in memory, streamed batch by batch.

    Equal to the operator of one big batch, whatever the sizes and the order of the batches: every
    batch counts by the weight of its real examples, and a centred covariance is centred once, over
    all of them (its mean gradient is put together from those of the batches in each product, which
    costs 1.4 times the flops of the others and no further pass). A loss with another normaliser
    than the number of examples returns a [`Mean`][].

    Nothing is kept from one product to the next: batches that were added and params that were bound
    anew count from the next product on.

    A product costs one pass over the batches, driven from the host; batches of one shape share one
    compiled program. The batches must be the same at every pass: shuffling or augmentation between
    products makes a different operator each time. Keys (of dropout, of a sampled Fisher) belong
    into the batches, one each: draws depend on the key and on the index within the batch.

    Args:
      make_operator: ``make_operator(batch)``, an operator over one batch; always of the same
        functions, so that it compiles once.
      batches: a re-iterable of batches (a list, a dataset object); not a generator.
      check: whether to look once, at the end of the first pass, that a loss_fn that returns a plain
        scalar returns the mean over its examples: by the loss of a few examples of the first and
        the last batch against those of their halves. ``False`` for a loss that draws numbers or has
        batch statistics on purpose.
      progress: whether to show a bar of the batches during every product, on standard error (by
        rich, if it is installed; lines for the products of more than 5 s where that is no
        terminal). Beside the bar of a function that multiplies it is a second one.
      callback: ``callback(step, weight, None)`` after every few batches, of slow ones after each:
        the batches of this product so far, and the weight of their examples, a NumPy number. If it
        returns ``True``, the product raises: for a time limit or an end that keeps what there is,
        give them to the function that multiplies.

    Returns:
      An operator for eager use: estimators take it, ``jit`` does not.

    Raises:
      TypeError: for one batch, a one-shot iterator, or operators of another type.
      ValueError: if there is no batch; at a product, if no example counts, or if a scalar loss is
        no mean over its examples: return a [`Mean`][].
      RuntimeError: at a product, if the callback stops it.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> batches = [jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 1.0]])]
      >>> H = flatjax.over_batches(lambda x: flatjax.hessian(loss_fn, jnp.zeros(2), x), batches)
      >>> (3 * (H @ jnp.ones(2))).tolist()
      [1.0, 5.0]
    """
    if not callable(make_operator):
        raise TypeError("make_operator must be a function of one batch that returns an operator.")
    checks.check_batches(batches, "every product")
    watching.watch("over_batches", progress, callback)  # checked here, made at every product
    return Stream(make_operator, batches, check=check, progress=progress, callback=callback)
