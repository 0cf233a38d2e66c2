"""A loss and its gradient over the parts of a batch: groups, micro-batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.losses import Mean
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._normalisers import check_mean
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng
from flatjax.transforms._groups import mean_over_groups, split

_LOOKED_AT = 16  # examples


class LossOverParts:
    """What is not the mathematics of an oracle: groups, micro-batches, devices and checks.

    ``args`` are the arguments of the loss after its params, the batch first.
    """

    def __init__(self, loss_fn, has_aux, groups, accumulate, axis_name, check):
        self.has_aux = has_aux
        self.groups = base.static_int("groups", groups)
        self.accumulate = base.static_int("accumulate", accumulate)
        self.axis_name = axis_name
        self.unchecked = []
        self.checks = check and self.accumulate > 1
        self.value_and_grad = self.replace(loss_fn, has_aux)

    def replace(self, loss_fn, has_aux=False):
        """``fn(params, args, kwargs) -> (loss, gradient), weight, aux``; no aux is ``None``."""
        out = callables.loss_and_aux(loss_fn, has_aux)
        mean = jax.value_and_grad(callables.mean_and_aux(out), has_aux=True)

        def value_and_grad(params, args, kwargs):
            (value, (weight, extra)), g = mean(params, args, kwargs)
            collectives.check_result(params, value, self.axis_name, "loss_fn")
            return (value, g), weight, extra

        if self.checks:
            self.unchecked.append(lambda *call: out(*call)[0])
        return value_and_grad

    def evaluate_on(self, args, kwargs, index):
        """``evaluate(params, fn)``: what ``fn`` returns on these examples."""
        if self.groups > 1:
            args, kwargs = prng.fold((args, kwargs), index)

        def evaluate(params, fn=self.value_and_grad):
            here = collectives.varying(params, self.axis_name)

            def one(i, args):
                a, k = prng.fold((args, kwargs), i) if self.accumulate > 1 else (args, kwargs)
                return fn(here, a, k)

            return one(0, args) if self.accumulate == 1 else self.accumulated(one, args)

        return evaluate

    def accumulated(self, one, args):
        """The mean of ``one`` over micro-batches by their weights, summed in at least float32.

        The aux outputs are averaged equally.
        """
        k = self.accumulate
        base.check_not_explicit("accumulate", args[0])
        parts = split(args[0], k, "accumulate")

        def at(i):
            part = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, False), parts)
            return one(i, (part, *args[1:]))

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
            jax.tree.map(lambda *parts: _check_agree(parts), carry[2], new[2])
            return jax.tree.map(lambda a, b: a + b if _is_float(a) else a, carry, new)

        total, weight, extra = loops.fori(k - 1, body, summand(first))

        def divided(tree, by, like):
            return jax.tree.map(
                lambda t, f: (t / by(t)).astype(f.dtype) if _is_float(f) else f, tree, like
            )

        mean = divided(total, lambda t: k if weight is None else weight.astype(t.dtype), first[0])
        return mean, weight, divided(extra, lambda _: k, first[2])

    def wrap(self, group):
        """The function the user calls."""

        def value_and_grad(params, *args, **kwargs):
            if not args and (self.groups > 1 or self.accumulate > 1):
                raise TypeError("groups and accumulate cut the batch: pass it by position.")
            callables.check_params("loss_fn", params)
            collectives.check_named(params, (args, kwargs), self.axis_name)
            (value, extra), grads = self.run(group, params, args, kwargs)
            self.check_normaliser(value, params, args, kwargs)
            return ((value, extra), grads) if self.has_aux else (value, grads)

        return value_and_grad

    def run(self, group, params, args, kwargs):
        """Over the groups; value, gradient and aux averaged."""
        batch, here = None, params
        if self.groups > 1:
            batch = args[0]
            base.check_not_explicit("groups", batch)
            here = collectives.varying(params, self.axis_name)

        def one(index, part, within):
            own = (part, *args[1:]) if self.groups > 1 else args
            return group(here, self.evaluate_on(own, kwargs, index), within)

        (value, grads), extra, stacked = mean_over_groups(
            one, batch, self.groups, self.axis_name, "auto"
        )
        return (value, _mean_of_aux(extra, self.axis_name, stacked)), grads

    def check_normaliser(self, value, params, args, kwargs):
        """Look once, at the first eager call, that scalar losses are means over the examples."""
        if not self.unchecked or loops.is_traced(value, params, args, kwargs):
            return
        leaves = jax.tree.leaves(args[0])
        n = leaves[0].shape[0]
        whole = all(getattr(a, "is_fully_addressable", True) for a in leaves)
        if n < 2 or not whole or any(a.shape[0] != n for a in leaves):
            return
        rows = np.unique(np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int))
        few = jax.tree.map(lambda a: a[rows], args[0])
        while self.unchecked:
            loss_fn = self.unchecked[-1]

            def loss(part, loss_fn=loss_fn):
                return loss_fn(params, (part, *args[1:]), kwargs)

            with matmul_precision("highest"):
                if _is_scalar(loss, few):
                    check_mean(loss, few)
            self.unchecked.pop()  # what is refused is refused again


def _is_scalar(loss, batch):
    try:
        out = jax.eval_shape(loss, batch)
    except Exception:  # a function of the host, or of batches of one size: there is no looking
        return False
    return not isinstance(out, Mean) and out.ndim == 0


def _is_float(a):
    return hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)


def _check_agree(parts):
    """Raise where counts of the parts of a batch are known, and differ."""
    dtype = getattr(parts[0], "dtype", None) if not loops.is_traced(parts) else None
    if dtype is None or not (jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_):
        return
    first, *others = (np.asarray(a) for a in parts)
    if not all(np.array_equal(first, other) for other in others):
        raise ValueError(
            "the auxiliary output has integers or booleans that differ between the parts of the "
            "batch, which groups= and accumulate= cannot put together: return means of metrics, "
            "such as (prediction == target).mean(), which are averaged."
        )


def _mean_of_aux(tree, axis_name, stacked):
    """The mean of floating leaves over devices, and over a leading axis if ``stacked``.

    Integers (step counters) and booleans are expected to agree, which eager calls look at, and keep
    their dtype; other leaves (keys) are taken from the first part.
    """

    def leaf(a):
        if stacked:
            _check_agree(a)
        if not hasattr(a, "dtype") or not jnp.issubdtype(a.dtype, jnp.number):
            return a[0] if stacked else a
        if jnp.issubdtype(a.dtype, jnp.inexact):
            return means.average(a.mean(axis=0) if stacked else a, axis_name)
        a = a[0] if stacked else a
        if axis_name is None:
            return a
        devices = collectives.total(jnp.ones((), a.dtype), axis_name)
        return collectives.total(a, axis_name) // devices

    return jax.tree.map(leaf, tree)
