"""What calls cost before they are made: the products of the defaults, and their seconds."""

from typing import NamedTuple

from flatjax import _reading as reading

# Products of a call with its defaults: usual ones, the most, and the dimension up to which there
# are as many as dimensions. The usual ones of `eigsh` and `spectrum` are those of Hessians and
# Gauss-Newton matrices of an MLP of 9,000 parameters, at its start and after 300 and 1,500 steps:
# 8 to 15 for one pair, 19 to 28 for five, 19 to 49 for ten; 156 to 292.
_CALLS = {
    "eigsh(op, 1)": (12, 321, 0),
    "eigsh(op, 5)": (21, 321, 0),
    "eigsh(op, 10)": (31, 401, 0),
    "trace(op)": (40, 40, 40),
    "spectral_density(op)": (240, 240, 240),
    "spectrum(op)": (220, 544, 70),
}


@reading.readable
class CallCost(NamedTuple):
    """What one call with its defaults takes; made by [`plan`][].

    Attributes:
      num_products: the usual number of products; what it really is, the spectrum decides.
      max_products: the most it spends.
      seconds: of the usual products, or ``None`` where none was timed.
      max_seconds: of the most.
    """

    num_products: int
    max_products: int
    seconds: float | None
    max_seconds: float | None


def calls(size: int, product_seconds: float | None) -> dict[str, CallCost]:
    """The costs of the calls, by how they are written, for an operator of a dimension."""
    out = {}
    for name, (usual, most, exact) in _CALLS.items():
        if size <= exact:
            usual = most = size
        usual = min(usual, size + 1)  # the whole space, and a certificate
        times = (None if product_seconds is None else n * product_seconds for n in (usual, most))
        out[name] = CallCost(usual, most, *times)
    return out
