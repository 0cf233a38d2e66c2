"""The calling side of the oracles: arguments, groups, micro-batches and devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import losses
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._normalisers import check_mean
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _groups as grp
from flatjax.transforms import _prng as prng

_LOOKED_AT = 16  # examples


class Calls:
    """Arguments in and out, groups, micro-batches and devices: all that is not the mathematics."""

    def __init__(
        self, loss_fn, argnums, has_aux, groups, batch_argnums, group_mode, accumulate,
        aux_reduction, axis_name, check,
    ):  # fmt: skip
        grp.check_group_mode(group_mode)
        if aux_reduction not in ("mean", "concatenate"):
            raise ValueError(
                f'aux_reduction must be "mean" or "concatenate", got {aux_reduction!r}.'
            )
        if aux_reduction == "concatenate" and accumulate != 1:
            raise ValueError('aux_reduction="concatenate" does not go with accumulate > 1.')
        self.argnums = argnums
        self.has_aux = has_aux
        self.groups = base.static_int("groups", groups, 1)
        self.accumulate = base.static_int("accumulate", accumulate, 1)
        self.batch_argnums = (batch_argnums,) if isinstance(batch_argnums, int) else batch_argnums
        self.group_mode: Any = group_mode
        self.concatenate = aux_reduction == "concatenate"
        self.axis_name = axis_name
        self.unchecked = []
        self.checks = check and self.accumulate > 1
        self.value_and_grad = self.replace(loss_fn, has_aux)

    def replace(self, loss_fn, has_aux=False):
        """``fn(params, rest, kwargs) -> (loss, gradient), weight, aux``; no aux is ``None``."""
        loss_fn = prng.cloning(loss_fn)
        called = callables.explained(
            "loss_fn", lambda params, rest, kwargs: loss_fn(*self.join(params, rest), **kwargs)
        )

        def loss_and_aux(params, rest, kwargs):
            out = called(params, rest, kwargs)
            return callables.loss_and_aux(out) if has_aux else (out, None)

        def mean(params, rest, kwargs):
            loss, extra = loss_and_aux(params, rest, kwargs)
            counted = self.counted_rows(loss, rest)
            if counted is not None:
                again, extra = loss_and_aux(params, counted, kwargs)
                loss = losses.Mean(again.total, loss.weight)
            value, weight = callables.loss_and_weight("loss_fn", loss)
            return value, (weight, extra)

        def value_and_grad(params, rest, kwargs):
            (value, (weight, extra)), g = jax.value_and_grad(mean, has_aux=True)(
                params, rest, kwargs
            )
            return (value, g), weight, extra

        if self.checks:
            self.unchecked.append(lambda *call: loss_and_aux(*call)[0])
        return value_and_grad

    def join(self, params, rest):
        """The argument list again, the params in their places."""
        call = list(rest)
        places = (self.argnums,) if isinstance(self.argnums, int) else self.argnums
        values = (params,) if isinstance(self.argnums, int) else params
        for place, value in sorted(zip(places, values, strict=True), key=lambda pair: pair[0]):
            call.insert(place, value)
        return call

    def evaluate_on(self, rest, kwargs, index):
        """``evaluate(params, number, fn)``: what ``fn`` returns on these examples."""

        def evaluate(params, number, fn=self.value_and_grad):
            here = collectives.varying(params, self.axis_name)

            def one(i, part):
                a, k = part
                if self.accumulate > 1:
                    a, k = prng.fold((a, k), i)
                if number:
                    a, k = prng.fold((a, k), number)
                return fn(here, a, k)

            a, k = (rest, kwargs) if self.groups == 1 else prng.fold((rest, kwargs), index)
            if self.accumulate == 1:
                return one(0, (a, k))
            return self.accumulated(one, a, k)

        return evaluate

    def accumulated(self, one, rest, kwargs):
        """The mean of ``one`` over micro-batches by their weights, summed in at least float32.

        The aux outputs are averaged equally.
        """
        k = self.accumulate
        batches, others = self.partition(rest)
        base.check_not_explicit("accumulate", batches)
        parts = grp.split(batches, k, "accumulate")

        def at(i):
            part = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, False), parts)
            return one(i, (self.restore(part, others), kwargs))

        def summand(part):
            part = jax.tree.map(
                lambda a: a.astype(trees.compute_dtype(a.dtype)) if _is_float(a) else a, part
            )
            mean, weight, extra = part
            if weight is None:
                return part
            # A micro-batch of weight zero has no mean.
            mean = jax.tree.map(
                lambda a: jnp.where(weight == 0, jnp.zeros_like(a), weight.astype(a.dtype) * a),
                mean,
            )
            return mean, weight, extra

        first = at(0)

        def body(i, carry):
            new = summand(at(i + 1))
            return jax.tree.map(lambda a, b: a + b if _is_float(a) else a, carry, new)

        total, weight, extra = loops.fori(k - 1, body, summand(first))

        def divided(tree, by, like):
            return jax.tree.map(
                lambda t, f: (t / by(t)).astype(f.dtype) if _is_float(f) else f, tree, like
            )

        mean = divided(total, lambda t: k if weight is None else weight.astype(t.dtype), first[0])
        return mean, weight, divided(extra, lambda _: k, first[2])

    def partition(self, rest):
        """The batch arguments and the others, by position among the non-params."""
        places = self.batch_places()
        for place in places:
            if place >= len(rest):
                raise ValueError(
                    f"batch_argnums={self.batch_argnums} names an argument that was not given "
                    "by position."
                )
        batches = [a for i, a in enumerate(rest) if i in places]
        return batches, [None if i in places else a for i, a in enumerate(rest)]

    def counted_rows(self, loss, rest):
        """The arguments without the examples of weight zero, see ``callables.counted_rows``."""
        if not isinstance(loss, losses.Mean) or self.params_places() & set(self.batch_argnums):
            return None
        if any(place >= len(rest) for place in self.batch_places()):
            return None
        batches, others = self.partition(rest)
        counted = callables.counted_rows(loss, batches)
        return None if counted is None else self.restore(counted, others)

    def restore(self, batches, others):
        """The inverse of ``partition``."""
        batches, places = list(batches), self.batch_places()
        return [batches.pop(0) if i in places else a for i, a in enumerate(others)]

    def batch_places(self):
        """``batch_argnums`` counted without the params."""
        params = self.params_places()
        if params & set(self.batch_argnums):
            raise ValueError("argnums and batch_argnums must not share an argument.")
        return {b - sum(a < b for a in params) for b in self.batch_argnums}

    def params_places(self):
        """The arguments that hold the params."""
        return {self.argnums} if isinstance(self.argnums, int) else set(self.argnums)

    def wrap(self, group):
        """The function the user calls."""

        def value_and_grad(*call, **kwargs):
            places = (self.argnums,) if isinstance(self.argnums, int) else tuple(self.argnums)
            if max(places) >= len(call):
                raise TypeError(f"argnums={self.argnums}, but only {len(call)} arguments given.")
            chosen = tuple(call[i] for i in places)
            params = chosen[0] if isinstance(self.argnums, int) else chosen
            callables.check_params("loss_fn", params)
            rest = [a for i, a in enumerate(call) if i not in places]
            (value, extra), grads = self.run(group, params, rest, kwargs)
            self.check_normaliser(value, params, rest, kwargs)
            return ((value, extra), grads) if self.has_aux else (value, grads)

        return value_and_grad

    def run(self, group, params, rest, kwargs):
        """Over the groups; value and gradient averaged, aux reduced."""
        if self.groups == 1:
            batches, others, here = [], rest, params
        else:
            batches, others = self.partition(rest)
            base.check_not_explicit("groups", batches)
            here = collectives.varying(params, self.axis_name)

        def one(index, part, within):
            args = self.restore(part, others) if self.groups > 1 else others
            (value, grads), weight, extra = group(
                here, self.evaluate_on(args, kwargs, index), within
            )
            return (value, grads), weight, extra

        (value, grads), extra, stacked = grp.mean_over_groups(
            one, batches, self.groups, self.axis_name, self.group_mode
        )
        if not self.concatenate:
            extra = base.average_aux(extra, self.axis_name, stacked)
        elif stacked:
            extra = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), extra)
        return (value, extra), grads

    def check_normaliser(self, value, params, rest, kwargs):
        """Look once, at the first eager call, that scalar losses are means over the examples."""
        if not self.unchecked or loops.is_traced(value, params, rest, kwargs):
            return
        batches, others = self.partition(rest)
        leaves = jax.tree.leaves(batches)
        n = leaves[0].shape[0]
        whole = all(getattr(a, "is_fully_addressable", True) for a in leaves)
        if n < 2 or not whole or any(a.shape[0] != n for a in leaves):
            return
        rows = np.unique(np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int))
        few = jax.tree.map(lambda a: a[rows], batches)
        while self.unchecked:
            loss_fn = self.unchecked[-1]

            def loss(part, loss_fn=loss_fn):
                return loss_fn(params, self.restore(part, others), kwargs)

            with matmul_precision("highest"):
                if _is_scalar(loss, few):
                    check_mean(loss, few)
            self.unchecked.pop()  # what is refused is refused again


def _is_scalar(loss, batch):
    try:
        out = jax.eval_shape(loss, batch)
    except Exception:  # a function of the host, or of batches of one size: there is no looking
        return False
    return not isinstance(out, losses.Mean) and out.ndim == 0


def _is_float(a):
    return hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)
