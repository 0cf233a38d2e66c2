r"""The small algebra of the leave-one-out estimators, XTrace and XNysTrace.

From ``s`` probes $\omega_i$ and their products each probe in turn measures what the low-rank
approximation of all the others leaves. On the host, in float64.
"""

import numpy as np

from flatjax.linalg.krylov import _ritz as ritz


def xtrace(
    triangle: np.ndarray, projected: np.ndarray, overlaps: np.ndarray, size: int, eps: float
) -> np.ndarray:
    r"""The XTrace samples, whose mean is the estimate.

    With $Q_{(i)}$ an orthonormal basis of the products of all probes but the i-th,
    $Q_{(i)}Q_{(i)}^\top = Q(I - s_is_i^\top)Q^\top$ where $s_i \propto R^{-\top}e_i$.

    Args:
      triangle: R of the QR factorisation of $A\Omega$, ``(s, s)``.
      projected: $Q^\top A Q$.
      overlaps: $Q^\top\Omega$.
      size: the dimension n. The probes have norm $\sqrt n$.
      eps: the unit of rounding of the products.

    Returns:
      ``(s,)``.
    """
    s = triangle.shape[0]
    if not np.isfinite(triangle).all():
        return np.full(s, np.nan)  # where the decomposition would raise
    left, singular, right = np.linalg.svd(triangle)
    # Singular values at the level of rounding belong to directions of no weight in A.
    floor = np.maximum(singular, eps * singular[0])
    inverse = left @ (right / np.where(floor > 0, floor, 1)[:, None])
    norms = np.sqrt(np.sum(inverse**2, axis=0))
    normals = inverse / np.where(norms > 0, norms, 1)[None, :]
    x = overlaps - normals * np.sum(normals * overlaps, axis=0)[None, :]
    trace = np.trace(projected) - np.sum(normals * (projected @ normals), axis=0)
    form = np.sum((overlaps - 2 * x) * triangle + x * (projected @ x), axis=0)
    # Given the others, the rest of a probe is uniform on a sphere of known dimension, so its
    # norm is noise that can be taken out (Epperly, Tropp and Webber 2024, section 2.3).
    rest = size - np.sum(x**2, axis=0)
    scale = np.where(rest > 1e-6 * size, (size - s + 1) / np.where(rest > 0, rest, 1), 1.0)
    return trace + form * scale


def xnystrace(
    triangle: np.ndarray,
    overlaps: np.ndarray,
    gram: np.ndarray,
    size: int,
    shift: float,
    eps: float,
) -> tuple[np.ndarray, float]:
    r"""The XNysTrace samples, whose mean is the estimate, and the least eigenvalue of $H$.

    The approximation is $\hat A = Y H^{-1} Y^\top$ with $Y = (A + \nu)\Omega$,
    $H = \Omega^\top Y$. Leaving out probe i takes $Y h_i h_i^\top Y^\top / d_i$ from
    it, with $h_i = H^{-1}e_i$ and $d_i = e_i^\top H^{-1} e_i$, and the rest of the
    probe then measures $1/d_i$.

    Args:
      triangle: R of the QR factorisation of Y, ``(s, s)``.
      overlaps: $Q^\top\Omega$.
      gram: $\Omega^\top\Omega$. The probes have norm $\sqrt n$.
      size: the dimension n.
      shift: the shift $\nu$, which keeps H regular; its trace is taken off.
      eps: the unit of rounding.

    Returns:
      The samples ``(s,)``, and the least eigenvalue of H over its largest (negative beyond
      rounding: A is not positive semi-definite).
    """
    s = triangle.shape[0]
    products = overlaps.T @ triangle
    values, vectors = ritz.eigh((products + products.T) / 2)
    largest = np.max(np.abs(values))
    safe = np.where(largest > 0, largest, 1)
    inverse = vectors @ (vectors.T / np.maximum(values, eps * safe)[:, None])
    image = triangle @ inverse
    trace = np.sum(image * triangle)
    d = np.diagonal(inverse)
    gram_values, gram_vectors = ritz.eigh(gram)
    # Given the others, the rest of a probe is uniform on a sphere of known dimension.
    rest = np.sum(gram_vectors**2 / np.maximum(gram_values, eps * size)[None, :], axis=1)
    scale = (size - s + 1) * rest
    samples = trace - np.sum(image**2, axis=0) / d + scale / d - shift * size
    return np.where(largest == 0, 0, samples), np.min(values) / safe
