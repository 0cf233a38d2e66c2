"""The objectives of the batches of a data set, one after the other, as the host meets them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flatjax import _checks as checks
from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.measures import _objective as objective
from flatjax.operators._hessian import Hessian
from flatjax.operators._selection import Where, selection


class Objectives:
    """The mean losses of all batches, made anew at every pass.

    The user's function is traced once for every shape of a batch, whatever the number of passes.
    """

    def __init__(
        self,
        name: str,
        loss_fn: Callable[..., Any],
        params: Tree,
        batches: Iterable[Any],
        args: tuple,
        *,
        precision: str | None,
        mask: Where | None = None,
    ):
        checks.check_batches(batches, name)
        self._name, self._loss_fn, self._batches = name, loss_fn, batches
        self._params, self._args, self._precision = params, args, precision
        wide = objective.widened(params)
        self._mask = None if mask is None else selection(wide, mask)
        self._memory: dict[Any, Any] = {}

    def __iter__(self) -> Iterator[Hessian]:
        count = 0
        for batch in self._batches:
            with functions.one_moment(self._memory):
                op = objective.mean_loss(
                    self._loss_fn, self._params, batch, self._args,
                    weights=None, axis_name=None, precision=self._precision,
                )  # fmt: skip
            if loops.is_traced(op):
                raise TypeError(
                    f"{self._name} goes over batches from the host and cannot be traced: call it "
                    "outside jit, vmap and grad."
                )
            count += 1
            yield op if self._mask is None else op.restrict(self._mask)
        if not count:
            raise ValueError(f"batches gave nothing: {self._name} needs at least one batch.")

    def endless(self) -> Iterator[Hessian]:
        """One pass after the other."""
        while True:
            yield from self
