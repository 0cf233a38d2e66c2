"""Which axes of a weight count its outputs and its inputs, as far as the name of the leaf says.

Flax (and Keras) call a weight ``kernel`` and lay it out ``(..., in, out)``; equinox and PyTorch
call it ``weight`` and lay it out ``(out, in, ...)``. Nothing in the shape tells them apart, and an
answer for the wrong axis looks like any other: a name that says nothing is an error, not a guess.
"""

from typing import Any, NamedTuple

import jax

_WRAPPERS = ("value", "raw_value")  # the array inside a variable of nnx


class Layout(NamedTuple):
    """Where the nodes of a weight are.

    Attributes:
      outputs: the axis that counts the outputs.
      inputs: the axis that counts the inputs.
    """

    outputs: int
    inputs: int


KERNEL, WEIGHT = Layout(-1, -2), Layout(0, 1)


def name_of(path: Any) -> str:
    """The name of a leaf: the last word of its path that is no index.

    Args:
      path: of ``jax.tree_util.tree_leaves_with_path``.

    Returns:
      The name, also of a flat dictionary (``"layers.0.weight"``); empty for a leaf without one.
    """
    for entry in reversed(path):
        name = getattr(entry, "key", getattr(entry, "name", None))
        if isinstance(name, str) and name not in _WRAPPERS:
            return name.replace("/", ".").rpartition(".")[2]
    return ""


def is_bias(path: Any, leaf: Any) -> bool:
    """Whether a leaf has no nodes on two sides: by its name, or for want of a second axis.

    The biases of convolutions in equinox and of attention in flax have two axes and more.
    """
    return leaf.ndim < 2 or name_of(path).split("_")[0] == "bias"


def layout_of(path: Any) -> Layout | None:
    """The layout that the name of a leaf tells; ``None`` where it tells none."""
    kind = name_of(path).split("_")[0]
    if kind == "weight":  # and weight_ih, weight_hh of recurrent cells
        return WEIGHT
    return KERNEL if kind == "kernel" else None


def unknown(path: Any, leaf: Any, argument: str, kernel: str, weight: str) -> ValueError:
    """The error for a leaf whose name tells no layout: which argument to give, and its values."""
    return ValueError(
        f"params{jax.tree_util.keystr(path)} has shape {tuple(leaf.shape)}, and its name does not "
        f"say which axis counts its outputs, as `kernel` (flax) and `weight` (equinox, PyTorch) "
        f"do: pass {argument}={kernel} for weights (..., in, out), used as x @ w, or "
        f"{argument}={weight} for (out, in, ...), used as w @ x."
    )
