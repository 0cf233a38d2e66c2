"""Convolutions that XLA's CPU backend is slow with, as the same sums in another order.

The backend has a fast kernel for convolutions of one group, and a slow one for the others:

- of many groups of few channels each it takes one group after the other, and a single group of few
  channels and few outputs it takes slowly, too;
- if the *examples* are grouped, which makes the kernel gradient of a grouped convolution, it
  computes the results of every pair of groups and throws away all but the diagonal;
- if the kernel is larger than the image, which makes the derivative of a kernel gradient, it walks
  through all the padding.

[`form_of`][] says, by shape, which form is faster; `benchmarks/convolutions.py` has measured it.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

# Where the forms were measured to be faster, see `benchmarks/convolutions.py`.
MOST_TERMS = 64  # of a sum, so that the program stays small
MOST_CHANNELS = 4  # of a group
FEW_OUTPUTS = 16  # of one group: with more XLA's own is faster, with fewer it has no fast kernel
SMALLER = 4  # times is an image smaller than the window over it
_DTYPES = (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)


def form_of(params: Any, inputs: Any, kernel: Any, outputs: Any) -> str | None:
    """The faster form of a convolution; ``None`` where it is XLA's own.

    Args:
      params: of the operation.
      inputs: the abstract value of its first operand.
      kernel: of its second.
      outputs: of its result.

    Returns:
      A name for [`convolution`][], or ``None``: ``"window"`` is a term for each element of the
      window and each channel of a group, a shifted slice of the image times a number;
      ``"places"`` a matrix product for each element of the result's image, of a shifted slice and
      the whole kernel (the result of a kernel gradient is as small as a kernel); ``"swapped"`` the
      image taken for the kernel and the kernel for the image.
    """
    if any(a.dtype not in _DTYPES for a in (inputs, kernel, outputs)):
        return None
    if 0 in (*inputs.shape, *kernel.shape, *outputs.shape):
        return None
    layout, groups = params["dimension_numbers"], params["feature_group_count"]
    image = math.prod(inputs.shape[axis] for axis in layout.lhs_spec[2:])
    window = math.prod(kernel.shape[axis] for axis in layout.rhs_spec[2:])
    places = math.prod(outputs.shape[axis] for axis in layout.out_spec[2:])
    channels = kernel.shape[layout.rhs_spec[1]]  # of one group
    if params["batch_group_count"] > 1:
        # XLA sees a depthwise convolution where every group is one example and one output.
        pairs = outputs.shape[layout.out_spec[0]] * kernel.shape[layout.rhs_spec[0]]
        depthwise = pairs == params["batch_group_count"]
        return "places" if places <= MOST_TERMS and not depthwise else None
    few = channels <= MOST_CHANNELS and window * channels <= MOST_TERMS
    if groups > 1 or (few and kernel.shape[layout.rhs_spec[0]] <= FEW_OUTPUTS):
        return "window" if few else None
    if places == 1:
        return "places"
    plain = {*params["window_strides"], *params["lhs_dilation"]} == {1}
    swaps = plain and SMALLER * image <= window
    return "swapped" if swaps else None


def convolution(params: Any, form: str) -> Callable[[Any, Any], Any]:
    """The same convolution in another form.

    Args:
      params: of the operation.
      form: one of the three.

    Returns:
      A function of the inputs and the kernel. Sums are in float32 at least, and rounded once.
    """
    return _swapped(params) if form == "swapped" else _shifted(params, form)


def _shifted(params, form):
    layout, rank = params["dimension_numbers"], len(params["window_strides"])
    examples = params["batch_group_count"] > 1  # or the groups are of the channels
    groups = max(params["feature_group_count"], params["batch_group_count"])
    space = "uvwxyz"[:rank]
    # Axes by name: examples n, inputs c, outputs o, groups g of two of them.
    of_image = _names(layout.lhs_spec, "nc" + space, "n" if examples else "c")
    of_kernel = _names(layout.rhs_spec, "oc" + space, "o")
    of_result = _names(layout.out_spec, "no" + space, "o")

    def convolve(inputs, kernel):
        dtype = params["preferred_element_type"] or inputs.dtype
        sums = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
        padding = [(0, 0, 0)] * inputs.ndim
        per_axis = zip(layout.lhs_spec[2:], params["padding"], params["lhs_dilation"], strict=True)
        for axis, (low, high), dilation in per_axis:
            padding[axis] = low, high, dilation - 1
        image = lax.pad(inputs, jnp.zeros((), inputs.dtype), padding)
        image = _split(image, layout.lhs_spec[0 if examples else 1], groups)
        kernel = _split(kernel, layout.rhs_spec[0], groups)
        image = _ordered(image, of_image, "gnc" + space)
        kernel = _ordered(kernel, of_kernel, "gco" + space)
        strides, dilations = params["window_strides"], params["rhs_dilation"]
        window = kernel.shape[3:]
        places = [
            (size - (count - 1) * dilation - 1) // stride + 1
            for size, count, dilation, stride in zip(
                image.shape[3:], window, dilations, strides, strict=True
            )
        ]
        if form == "window":
            terms = []
            for position in itertools.product(*map(range, window)):
                part = _slice(image, position, dilations, places, strides).astype(sums)
                weights = kernel[(slice(None), slice(None), slice(None), *position)].astype(sums)
                weights = weights.reshape(groups, 1, *weights.shape[1:], *[1] * rank)
                terms += [part[:, :, c, None] * weights[:, :, c] for c in range(part.shape[2])]
            result = sum(terms[1:], terms[0])
            found = "gno" + space
        else:
            terms = [
                _dot(_slice(image, position, strides, window, dilations), kernel, params, sums)
                for position in itertools.product(*map(range, places))
            ]
            result = jnp.stack(terms).reshape(*places, *terms[0].shape)
            found = space + "gno"
        result = _ordered(result.astype(dtype), found, of_result)
        at, shape = of_result.index("g"), result.shape
        return result.reshape(*shape[:at], -1, *shape[at + 2 :])

    return convolve


def _dot(part, kernel, params, sums):
    space = "uvwxyz"[: part.ndim - 3]
    return jnp.einsum(
        f"gnc{space},gco{space}->gno", part, kernel,
        precision=params["precision"], preferred_element_type=sums,
    )  # fmt: skip


def _swapped(params):
    layout = params["dimension_numbers"]
    swapped = lax.ConvDimensionNumbers(
        layout.rhs_spec,
        layout.lhs_spec,
        (layout.out_spec[1], layout.out_spec[0], *layout.out_spec[2:]),
    )

    def convolve(inputs, kernel):
        images = (inputs.shape[axis] for axis in layout.lhs_spec[2:])
        windows = (
            (kernel.shape[axis] - 1) * dilation + 1
            for axis, dilation in zip(layout.rhs_spec[2:], params["rhs_dilation"], strict=True)
        )
        padding = tuple(
            (low + image - window, high + image - window)
            for (low, high), image, window in zip(params["padding"], images, windows, strict=True)
        )
        return primitives.conv_general_dilated_p.bind(
            lax.rev(kernel, layout.rhs_spec[2:]),
            lax.rev(inputs, layout.lhs_spec[2:]),
            **{
                **params,
                "dimension_numbers": swapped,
                "padding": padding,
                "lhs_dilation": params["rhs_dilation"],
                "rhs_dilation": params["lhs_dilation"],
                "precision": params["precision"] and params["precision"][::-1],
            },
        )

    return convolve


def _names(spec, names, grouped):
    """The names of the axes in their order, ``g`` before that which is grouped."""
    named = dict(zip(spec, names, strict=True))
    return "".join(named[axis] for axis in range(len(spec))).replace(grouped, "g" + grouped)


def _ordered(array, names, order):
    return jnp.transpose(array, [names.index(name) for name in order])


def _split(array, axis, groups):
    shape = array.shape
    return array.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])


def _slice(array, position, steps, sizes, strides):
    """The part of a ``(g, n, c, *space)`` at a position, strided."""
    starts = [p * s for p, s in zip(position, steps, strict=True)]
    limits = [a + (n - 1) * s + 1 for a, n, s in zip(starts, sizes, strides, strict=True)]
    return lax.slice(array, (0, 0, 0, *starts), (*array.shape[:3], *limits), (1, 1, 1, *strides))
