r"""The small algebra of the leave-one-out estimators, XTrace and XNysTrace.

From ``s`` probes :math:`\omega_i` and their products each probe in turn measures what the
low-rank approximation of all the others leaves. Every function takes NumPy arrays (float64 on the
host) or JAX arrays (traced).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax.linalg.krylov import _ritz as ritz


def _namespace(a: Any):
    return jnp if isinstance(a, jax.Array) else np


def xtrace(triangle: Any, projected: Any, overlaps: Any, size: int, eps: float) -> Any:
    r"""The XTrace samples, whose mean is the estimate.

    With :math:`Q_{(i)}` an orthonormal basis of the products of all probes but the i-th,
    :math:`Q_{(i)}Q_{(i)}^\top = Q(I - s_is_i^\top)Q^\top` where :math:`s_i \propto R^{-\top}e_i`.

    Args:
      triangle: R of the QR factorisation of :math:`A\Omega`, ``(s, s)``.
      projected: :math:`Q^\top A Q`.
      overlaps: :math:`Q^\top\Omega`.
      size: the dimension n. The probes have norm :math:`\sqrt n`.
      eps: the unit of rounding of the products.

    Returns:
      ``(s,)``.
    """
    xp = _namespace(triangle)
    s = triangle.shape[0]
    if xp is np and not np.isfinite(triangle).all():
        return np.full(s, np.nan)  # as on the device; NumPy's decomposition raises
    left, singular, right = xp.linalg.svd(triangle)
    # Singular values at the level of rounding belong to directions of no weight in A.
    floor = xp.maximum(singular, eps * singular[0])
    inverse = left @ (right / xp.where(floor > 0, floor, 1)[:, None])
    lengths = xp.sqrt(xp.sum(inverse**2, axis=0))
    normals = inverse / xp.where(lengths > 0, lengths, 1)[None, :]
    x = overlaps - normals * xp.sum(normals * overlaps, axis=0)[None, :]
    trace = xp.trace(projected) - xp.sum(normals * (projected @ normals), axis=0)
    form = xp.sum((overlaps - 2 * x) * triangle + x * (projected @ x), axis=0)
    # Given the others, the rest of a probe is uniform on a sphere of known dimension, so its
    # length is noise that can be taken out (Epperly, Tropp and Webber 2024, section 2.3).
    rest = size - xp.sum(x**2, axis=0)
    scale = xp.where(rest > 1e-6 * size, (size - s + 1) / xp.where(rest > 0, rest, 1), 1.0)
    return trace + form * scale


def xnystrace(triangle: Any, overlaps: Any, probes: Any, size: int, shift: Any, eps: float) -> Any:
    r"""The XNysTrace samples, whose mean is the estimate, and the least eigenvalue of :math:`H`.

    The approximation is :math:`\hat A = Y H^{-1} Y^\top` with :math:`Y = (A + \nu)\Omega`,
    :math:`H = \Omega^\top Y`. Leaving out probe i takes :math:`Y h_i h_i^\top Y^\top / d_i` from
    it, with :math:`h_i = H^{-1}e_i` and :math:`d_i = e_i^\top H^{-1} e_i`, and the rest of the
    probe then measures :math:`1/d_i`.

    Args:
      triangle: R of the QR factorisation of Y, ``(s, s)``.
      overlaps: :math:`Q^\top\Omega`.
      probes: :math:`\Omega^\top\Omega`. The probes have norm :math:`\sqrt n`.
      size: the dimension n.
      shift: the shift :math:`\nu`, which keeps H regular; its trace is taken off.
      eps: the unit of rounding.

    Returns:
      The samples ``(s,)``, and the least eigenvalue of H over its largest (negative beyond
      rounding: A is not positive semi-definite).
    """
    xp = _namespace(triangle)
    s = triangle.shape[0]
    products = overlaps.T @ triangle
    values, vectors = ritz.eigh((products + products.T) / 2)
    largest = xp.max(xp.abs(values))
    safe = xp.where(largest > 0, largest, 1)
    inverse = vectors @ (vectors.T / xp.maximum(values, eps * safe)[:, None])
    image = triangle @ inverse
    trace = xp.sum(image * triangle)
    d = xp.diagonal(inverse)
    values_k, vectors_k = ritz.eigh(probes)
    # Given the others, the rest of a probe is uniform on a sphere of known dimension.
    rest = xp.sum(vectors_k**2 / xp.maximum(values_k, eps * size)[None, :], axis=1)
    scale = (size - s + 1) * rest
    samples = trace - xp.sum(image**2, axis=0) / d + scale / d - shift * size
    return xp.where(largest == 0, 0, samples), xp.min(values) / safe
