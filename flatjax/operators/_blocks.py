"""Parts of an operator: one layer, a group of params, all diagonal blocks at once."""

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax.operators._base import Modified, Operator, operator, static
from flatjax.operators._selection import By, Selection, Where, group_names, selection


def restrict(op: Operator, where: Where) -> Operator:
    r"""The diagonal block of an operator that belongs to some of the params.

    $$B = R A R^\top,$$

    the Hessian of one layer with the others held fixed, for instance. The block acts on trees like
    the params with ``None`` in place of the other leaves (an empty subtree to JAX):
    [`select`][] makes one of a whole tree, [`embed`][] the reverse.

    A block of [`hessian`][], [`ggn`][], [`fisher`][] and [`gradient_covariance`][] is again such an
    operator, over the chosen params only: forward- and reverse-mode passes leave out the others,
    and a product costs less than one of ``op``. A block of any other operator costs a product of
    it.

    Args:
      op: the operator.
      where: a path such as ``"encoder/layer_0"``, which chooses all leaves beneath it, or a
        sequence of paths; a predicate ``where(path, leaf)`` on the path and the
        ``jax.ShapeDtypeStruct`` of a leaf; or a tree of booleans, a prefix of the params. A path is
        the names of ``jax.tree_util.keystr(..., simple=True, separator="/")``.

    Returns:
      The block.

    Raises:
      TypeError: for an operator or a ``where`` of another kind.
      ValueError: if nothing is chosen; the text lists the paths.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(p, _):
      ...     return p["a"] ** 2 * p["b"] ** 2
      >>> H = flatjax.hessian(loss_fn, {"a": jnp.float32(3.0), "b": jnp.float32(1.0)}, None)
      >>> H.to_dense().tolist()
      [[2.0, 12.0], [12.0, 18.0]]
      >>> flatjax.restrict(H, "b").to_dense().tolist()
      [[18.0]]
    """
    if not isinstance(op, Operator):
        raise TypeError(f"op must be an operator, got {type(op).__name__}: see as_operator.")
    return op.restrict(selection(op.structure, where))


def blocks(op: Operator, by: By = "layer") -> dict[str, Operator]:
    """The diagonal blocks of all layers, by name.

    Args:
      op: the operator.
      by: ``"layer"``: leaves with a common parent make a block (a leaf at the top is one by
        itself). ``"leaf"``: every leaf. Or a function of the path that gives the name of the block.

    Returns:
      A dictionary from names to operators as [`restrict`][] makes them, in the order of the leaves.

    Raises:
      TypeError: if ``op`` is no operator.
      ValueError: for another ``by``.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> params = {"in": {"w": jnp.ones(2), "b": jnp.ones(1)}, "out": {"w": jnp.ones(3)}}
      >>> H = flatjax.hessian(lambda p, _: p["in"]["w"].sum() * p["out"]["w"].sum(), params, None)
      >>> {name: block.size for name, block in flatjax.blocks(H).items()}
      {'in': 3, 'out': 3}
    """
    if not isinstance(op, Operator):
        raise TypeError(f"op must be an operator, got {type(op).__name__}: see as_operator.")
    treedef, names = jax.tree.structure(op.structure), group_names(op.structure, by)
    return {
        str(name): op.restrict(Selection(treedef, tuple(n == name for n in names)))
        for name in dict.fromkeys(names)
    }


@operator
class BlockDiagonal(Modified):
    """The direct sum of an operator's diagonal blocks; made by [`block_diagonal`][].

    Attributes:
      op: the operator.
      groups: the number of the block of every leaf.
      block_size: blocks whose products are taken at once.
    """

    op: Operator
    groups: tuple[int, ...] = static()
    block_size: int = static()

    def mv(self, v):
        trees.check(v, self.structure)
        count, total = max(self.groups) + 1, None
        size = 1 if self.host_driven else self.block_size
        for start in range(0, count, size):
            flags = [[g == start + i for g in self.groups] for i in range(min(size, count - start))]
            part = self._blocks(v, flags)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    def _facts(self):
        return {"blocks": f"{max(self.groups) + 1:,}", **super()._facts()}

    def _blocks(self, v, flags):
        """The sum over some blocks of their products; ``flags`` one row a block."""
        leaves, treedef = jax.tree.flatten(v)

        def one(row):
            flagged = [a * row[i].astype(a.dtype) for i, a in enumerate(leaves)]
            product = jax.tree.leaves(self.op.mv(treedef.unflatten(flagged)))
            return [a * row[i].astype(a.dtype) for i, a in enumerate(product)]

        rows = jnp.asarray(flags)
        if self.host_driven:
            return treedef.unflatten(one(rows[0]))
        # Only the tangents are batched, so the blocks share one primal pass.
        return treedef.unflatten([a.sum(axis=0) for a in jax.vmap(one)(rows)])


def block_diagonal(op: Operator, by: By = "layer", *, block_size: int = 8) -> BlockDiagonal:
    r"""The block-diagonal part of an operator, all blocks in one program.

    $$\bigoplus_b R_b A R_b^\top$$

    acts on whole vectors, every layer's part on its own. The products of the blocks share the
    primal pass and run ``block_size`` at a time as one batch of tangents, so a product costs as
    many forward and reverse sweeps as there are blocks but one primal pass, and the memory of
    ``block_size`` vectors and their tangents.

    Args:
      op: the operator.
      by: how leaves are grouped; see [`blocks`][].
      block_size: blocks at once.

    Returns:
      An operator on the same vectors.

    Raises:
      TypeError: if ``op`` is no operator.
      ValueError: for another ``by``, or a ``block_size`` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> H = flatjax.hessian(
      ...     lambda p, _: p["a"] ** 2 * p["b"] ** 2,
      ...     {"a": jnp.float32(3.0), "b": jnp.float32(1.0)},
      ...     None,
      ... )
      >>> flatjax.block_diagonal(H).to_dense().tolist()
      [[2.0, 0.0], [0.0, 18.0]]
    """
    if not isinstance(op, Operator):
        raise TypeError(f"op must be an operator, got {type(op).__name__}: see as_operator.")
    checks.check_count("block_size", block_size)
    names = group_names(op.structure, by)
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return BlockDiagonal(op, tuple(order[name] for name in names), block_size)
