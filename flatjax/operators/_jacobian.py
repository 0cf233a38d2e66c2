"""The Jacobian of a model's outputs, its transpose, and the neural tangent kernel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _convolutions as convolutions
from flatjax import _trees as trees
from flatjax.operators import _derivatives as derivatives
from flatjax.operators._arguments import as_arrays, check_arguments, matmul_precision
from flatjax.operators._base import Operator, operator, static
from flatjax.operators._callables import follow
from flatjax.operators._maps import DENSE_LIMIT, LinearMap, dense_columns


@operator
class Jacobian(LinearMap):
    """The Jacobian of a model's outputs; made by [`jacobian`][].

    Not a symmetric [`Operator`][]: it maps trees like the params to trees like the outputs.
    """

    params: Any
    inputs: Any
    args: tuple
    kept: Any = None  # the linear map, once linearised
    model_fn: Any = None
    precision: Any = static(default="highest")

    @property
    def structure(self) -> Any:
        """The vectors that the Jacobian acts on, like the params."""
        return trees.structure_of(self.params)

    @property
    def output_structure(self) -> Any:
        """The vectors that it gives, like the outputs of the model."""
        return trees.structure_of(jax.eval_shape(self._outputs, self.params))

    @property
    def method(self) -> str:
        """``"jvp"``, or what takes its place where the model has no forward-mode rule."""
        return derivatives.way_taken(self).method

    @property
    def relative_noise(self) -> float:
        """The relative error of ``J v`` to expect: rounding, or that of finite differences."""
        return derivatives.way_taken(self).noise

    @property
    def T(self) -> "JacobianTranspose":
        """The transpose, which maps outputs to params: a vector-Jacobian product."""
        return JacobianTranspose(self)

    def mv(self, v: Any) -> Any:
        """``J v`` by forward mode: about one forward pass."""
        trees.check(v, self.structure)
        with matmul_precision(self.precision):
            product = self._linear_map()(trees.cast(v, self.params))
            return trees.cast(product, self.output_structure)

    def rmv(self, u: Any) -> Any:
        """``J^T u`` by reverse mode: about one gradient."""
        trees.check(u, self.output_structure, "u")
        with matmul_precision(self.precision):
            if self.kept is not None:
                product = self.kept.transpose(self.params, self._cotangent(u))
            else:
                outputs, vjp = jax.vjp(self._outputs, self.params)
                product = vjp(trees.cast(u, outputs))[0]
        return trees.cast(product, self.structure)

    def gram(self, u: Any) -> Any:
        """``J J^T u`` on one primal pass."""
        trees.check(u, self.output_structure, "u")
        with matmul_precision(self.precision):
            linear = self._linear_map()
            v = linear.transpose(self.params, self._cotangent(u))
            return trees.cast(linear(v), self.output_structure)

    def linearize(self) -> "Jacobian":
        """The same Jacobian with the residuals of the primal pass kept."""
        this: Any = self  # a dataclass, to `operator`
        return self if self.kept is not None else dataclasses.replace(this, kept=_linear_map(self))

    def to_dense(self) -> jax.Array:
        """The dense matrix, shape ``(outputs, params)``, both raveled by ``ravel_pytree``.

        Returns:
          The matrix.

        Raises:
          ValueError: beyond 20,000 rows or columns.
        """
        if max(self.shape) > DENSE_LIMIT:
            raise ValueError(
                f"a dense Jacobian of shape {self.shape} is refused beyond {DENSE_LIMIT:,}; use "
                "its products."
            )
        return dense_columns(self.T)

    def __matmul__(self, v: Any) -> Any:
        """``J v``, compiled."""
        return _product(self, v)

    def _facts(self):
        return {"model": self.model_fn.name, "precision": str(self.precision)}

    def _outputs(self, params):
        return self.model_fn(params, self.inputs, *self.args)

    def _cotangent(self, u):
        return trees.cast(u, jax.eval_shape(self._outputs, self.params))

    def traced_way(self) -> derivatives.Way:
        """How derivatives are taken, known once they are traced."""
        return self._linear_map().way

    def _linear_map(self):
        if self.kept is not None:
            return self.kept
        return derivatives.linear_map(self._outputs, self.params)[1]


@operator
class JacobianTranspose(LinearMap):
    """The transpose of a [`Jacobian`][], made by its ``.T``."""

    jacobian: Jacobian

    @property
    def structure(self) -> Any:
        """The vectors that it acts on, like the outputs."""
        return self.jacobian.output_structure

    @property
    def output_structure(self) -> Any:
        """The vectors that it gives, like the params."""
        return self.jacobian.structure

    @property
    def T(self) -> Jacobian:
        """The Jacobian again."""
        return self.jacobian

    def mv(self, u: Any) -> Any:
        """``J^T u``."""
        return self.jacobian.rmv(u)

    def linearize(self) -> "JacobianTranspose":
        """The same transpose with the residuals of the primal pass kept."""
        return JacobianTranspose(self.jacobian.linearize())

    def to_dense(self) -> jax.Array:
        """The dense matrix, shape ``(params, outputs)``."""
        return self.jacobian.to_dense().T

    def __matmul__(self, u: Any) -> Any:
        """``J^T u``, compiled."""
        return _product(self, u)

    def _facts(self):
        return self.jacobian._facts()


@convolutions.compiled
def _product(op, v):
    return op.mv(v)


@jax.jit
def _linear_map(op):
    with matmul_precision(op.precision):
        return op._linear_map()


@operator
class TangentKernel(Operator):
    """``J J^T``; made by [`ntk`][]."""

    jacobian: Jacobian

    @property
    def structure(self):
        return self.jacobian.output_structure

    def mv(self, v):
        return self.jacobian.gram(v)

    def linearize(self):
        return TangentKernel(self.jacobian.linearize())

    def _facts(self):
        return self.jacobian._facts()


def jacobian(
    model_fn: Callable[..., Any],
    params: Any,
    inputs: Any,
    *args: Any,
    precision: str | None = "highest",
) -> Jacobian:
    r"""The Jacobian $J = \partial z / \partial \theta$ of a model's outputs, and its transpose.

    ``J @ v`` is a directional derivative of all outputs (forward mode, about one forward pass) and
    ``J.T @ u`` a vector-Jacobian product (reverse mode, about one gradient). Nothing is normalised
    or averaged.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, a floating array or a tree of them.
      params: a pytree of floating arrays.
      inputs: the inputs, any pytree.
      *args: model state, dropout keys, anything else the model takes; leaves of the operator.
      precision: matmul precision of the products; ``None`` leaves the caller's default.

    Returns:
      A linear map with ``mv``, ``T``, ``linearize()``, ``to_dense()``, ``to_scipy()``,
      ``structure``, ``output_structure``, ``shape`` and ``dtype``.

    Raises:
      TypeError: for params or outputs that are not floating, or a model that is no function.
      ValueError: for empty params.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
      >>> J = flatjax.jacobian(lambda w, x: x @ w, jnp.zeros(2), x)
      >>> (J @ jnp.ones(2)).tolist(), (J.T @ jnp.ones(3)).tolist()
      ([1.0, 2.0, 2.0], [2.0, 3.0])
    """
    check_arguments(params, None, None, None, precision)
    params, inputs, args = as_arrays((params, inputs, args))
    model_fn = follow(model_fn, "model_fn", params, inputs, args, precision=precision)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model_fn.out):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"model_fn's output{jax.tree_util.keystr(path)} must be a real floating array, got "
                f"dtype {leaf.dtype}."
            )
    return Jacobian(params, inputs, args, None, model_fn, precision)


def ntk(
    model_fn: Callable[..., Any],
    params: Any,
    inputs: Any,
    *args: Any,
    precision: str | None = "highest",
) -> TangentKernel:
    r"""The empirical neural tangent kernel as an operator on the outputs.

    $$\Theta = J J^\top, \qquad
    \Theta_{(i, c), (j, d)} = \langle \nabla_\theta z_{ic}, \nabla_\theta z_{jd} \rangle$$

    (Jacot et al. 2018, arXiv:1806.07572), without any normalisation. For the squared error its
    eigenvalues over $n$ are those of the GGN, beside zeros. A product is one reverse-mode and one
    forward-mode pass, about 1.7 gradients (1.35 after ``linearize()``), and never a matrix.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, a floating array or a tree of them.
      params: a pytree of floating arrays.
      inputs: the inputs, any pytree.
      *args: model state, dropout keys, anything else the model takes; leaves of the operator.
      precision: matmul precision of the products; ``None`` leaves the caller's default.

    Returns:
      An operator on trees like the outputs, shape ``(n, outputs)`` for most models.

    Raises:
      TypeError: for params or outputs that are not floating, or a model that is no function.
      ValueError: for empty params.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
      >>> flatjax.ntk(lambda w, x: x @ w, jnp.zeros(2), x).to_dense().tolist()  # x x'
      [[1.0, 1.0], [1.0, 5.0]]
    """
    return TangentKernel(jacobian(model_fn, params, inputs, *args, precision=precision))
