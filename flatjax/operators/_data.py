"""What every operator over a batch of examples shares: weights, averaging, linearisation."""

from collections.abc import Callable
from typing import Any

import jax

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.operators import _derivatives as derivatives
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._base import Operator, operator, static


class DataOperator(Operator):
    """An operator that is a weighted mean over the examples of a batch.

    Subclasses have the fields ``params``, ``axis_name`` and ``precision``, ``example_weights`` and
    a ``linear`` map; the mean is taken here, in one place.
    """

    params: Any
    axis_name: collectives.AxisName
    precision: str | None
    centered = False  # True of a covariance that subtracts the mean gradient

    @property
    def structure(self):
        return trees.structure_of(self.params)

    @property
    def example_weights(self) -> jax.Array:
        """The weights of the terms of the mean on this device; one entry for a scalar loss."""
        raise NotImplementedError

    @property
    def weight(self) -> jax.Array:
        """The total weight of this device's examples: their number, or the sum of their weights."""
        return self.example_weights.sum()

    @property
    def scale(self) -> Any:
        """About the total weight of this device's examples: the denominator of their shares."""
        raise NotImplementedError

    @property
    def method(self) -> str:
        """How derivatives are taken: a fallback where the model lacks a forward-mode rule."""
        return derivatives.way_taken(self).method

    @property
    def relative_noise(self) -> float:
        """The relative error of a product to expect: rounding, or that of finite differences."""
        return derivatives.way_taken(self).noise

    def traced_way(self) -> derivatives.Way:
        """How derivatives are taken, known once they are traced."""
        return self.linear()[0].way

    @property
    def rule(self) -> Callable[..., Any]:
        """``rule(linear, aux, v, axis_name)``, the local sum of terms with their [`shares`][].

        Hashable, and holds no data. That of a covariance also has ``moments``.
        """
        raise NotImplementedError

    @property
    def examples(self) -> int | None:
        """The number of this device's examples; ``None`` where the operator cannot be split."""
        return None

    @property
    def per_example(self) -> bool:
        """Whether every example has a term of its own, so that one can be masked."""
        return True

    def for_chunks(self, size: int) -> "DataOperator":
        """The operator with the user's functions followed for chunks of this size, too."""
        raise NotImplementedError

    def part(self, start: Any, size: int, keep: jax.Array | None) -> "DataOperator":
        """The operator over ``size`` examples from ``start`` on, which may be traced.

        Their weights are multiplied by ``keep``, shape ``(size,)``, where it is given.
        """
        raise NotImplementedError

    def linear(self) -> tuple[Any, Any]:
        """A linear map of the tangent and what else ``rule`` needs, at the params."""
        raise NotImplementedError

    def local_mean(self, v: Any) -> Any:
        """The sum of the terms of this device's examples with their [`shares`][]; v is prepared."""
        linear, aux = self.linear()
        return self.rule(linear, aux, v, self.axis_name)

    def moments(self, v: Any) -> tuple[Any, jax.Array, Any]:
        """Of a centred covariance, ``local_mean`` centred by this device's own mean gradient.

        Then the inner product of the mean gradient with ``v``, and the mean gradient.
        """
        linear, aux = self.linear()
        rule: Any = self.rule
        return rule.moments(linear, aux, v)

    def prepared(self, v: Any) -> Any:
        """``v`` checked, in the params' dtypes, and varying over the named axes."""
        trees.check(v, self.structure)
        return collectives.varying(trees.cast(v, self.params), self.axis_name)

    def mv(self, v):
        with matmul_precision(self.precision):
            mean = trees.cast(self.local_mean(self.prepared(v)), self.structure)
        return weighting.over_devices(mean, self.example_weights, self.scale, self.axis_name)

    def _facts(self):
        facts = {} if self.examples is None else {"examples": f"{self.examples:,}"}
        if self.axis_name is not None:
            facts["axis_name"] = repr(self.axis_name)
        return {**facts, "precision": str(self.precision)}

    def linearize(self):
        linear, aux, weights, scale = _linearized(self)
        leaves, treedef = jax.tree.flatten(self.structure)
        dtypes = tuple(a.dtype for a in jax.tree.leaves(self.params))
        return Linearized(
            linear, aux, weights, scale, self.rule, (tuple(leaves), treedef), dtypes,
            self.axis_name, self.precision,
        )  # fmt: skip


@jax.jit
def _linearized(op):
    # Under jit with the operator as an argument, a new batch of the same shapes reuses the program
    # *and* the very function object inside the returned Partial, so products are not retraced.
    with matmul_precision(op.precision):
        return *op.linear(), op.example_weights, op.scale


@operator
class Linearized(DataOperator):
    """A data operator whose primal pass has been evaluated; see ``Operator.linearize``."""

    linear_map: Any
    aux: Any
    kept_weights: jax.Array
    kept_scale: Any
    linear_rule: Any
    shapes: Any = static()
    dtypes: Any = static()
    axis_name: Any = static()  # type: ignore[assignment]
    precision: Any = static()  # type: ignore[assignment]

    @property
    def structure(self):
        leaves, treedef = self.shapes
        return jax.tree.unflatten(treedef, leaves)

    @property
    def example_weights(self):
        return self.kept_weights

    @property
    def scale(self):
        return self.kept_scale

    @property
    def rule(self):
        return self.linear_rule

    def linear(self):
        return self.linear_map, self.aux

    def prepared(self, v):
        trees.check(v, self.structure)
        leaves, treedef = jax.tree.flatten(v)
        leaves = [a.astype(d) for a, d in zip(leaves, self.dtypes, strict=True)]
        return collectives.varying(jax.tree.unflatten(treedef, leaves), self.axis_name)

    def linearize(self):
        return self

    @property
    def centered(self):
        return getattr(self.linear_rule, "centered", False)

    def _facts(self):
        rule = {"rule": type(self.linear_rule).__name__, "method": self.linear_map.way.method}
        return {**rule, **super()._facts()}


def sliced(tree: Any, start: Any, size: int, axis: int = 0) -> Any:
    """``size`` entries from ``start`` on, along an axis of every leaf."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis), tree)


def sliced_weights(
    weights: jax.Array | None, start: Any, size: int, keep: jax.Array | None
) -> jax.Array | None:
    """The weights of some examples, times ``keep`` where it is given."""
    if weights is None:
        return keep
    weights = sliced(weights, start, size)
    if keep is None:
        return weights
    return weights * trees.per_row(keep, weights)
