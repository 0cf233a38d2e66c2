"""The samples of XTrace and XNysTrace, each against its definition: one probe on all the others."""

import numpy as np
import pytest

from flatjax.linalg.probing import _leave_one_out as leave_one_out

N, COUNT, EPS = 14, 5, float(np.finfo(float).eps)


def problem(definite):
    """A matrix, probes on the sphere of radius sqrt(n), and the QR factors of the products."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((N, N))
    a = a @ a.T if definite else a + a.T
    omega = rng.standard_normal((N, COUNT))
    omega *= np.sqrt(N) / np.linalg.norm(omega, axis=0)
    return a, omega, *np.linalg.qr(a @ omega)


def others(i):
    return [j for j in range(COUNT) if j != i]


def test_xtrace():
    a, omega, q, r = problem(definite=False)
    found = leave_one_out.xtrace(r, q.T @ a @ q, q.T @ omega, N, EPS)
    for i, sample in enumerate(found):
        basis, _ = np.linalg.qr((a @ omega)[:, others(i)])
        rest = omega[:, i] - basis @ (basis.T @ omega[:, i])
        scale = (N - COUNT + 1) / (rest @ rest)
        exact = np.trace(basis.T @ a @ basis) + scale * (rest @ a @ rest)
        # Inverses of a triangle of condition about 10.
        np.testing.assert_allclose(sample, exact, rtol=1e-12)


def test_xnystrace():
    a, omega, _, _ = problem(definite=True)
    shift = 1e-3
    q, r = np.linalg.qr((a + shift * np.eye(N)) @ omega)
    found, least = leave_one_out.xnystrace(r, q.T @ omega, omega.T @ omega, N, shift, EPS)
    values = np.linalg.eigvalsh(omega.T @ q @ r)
    np.testing.assert_allclose(least, values[0] / values[-1], rtol=1e-10)
    shifted = a + shift * np.eye(N)
    for i, sample in enumerate(found):
        w = omega[:, others(i)]
        y = shifted @ w
        nystrom = y @ np.linalg.solve(w.T @ y, y.T)
        rest = omega[:, i] - w @ np.linalg.lstsq(w, omega[:, i], rcond=None)[0]
        scale = (N - COUNT + 1) / (rest @ rest)
        form = omega[:, i] @ (shifted - nystrom) @ omega[:, i]
        exact = np.trace(nystrom) + scale * form - shift * N
        np.testing.assert_allclose(sample, exact, rtol=1e-10)


def test_a_negative_eigenvalue_shows():
    a, omega, q, r = problem(definite=False)
    _, least = leave_one_out.xnystrace(r, q.T @ omega, omega.T @ omega, N, 0.0, EPS)
    values = np.linalg.eigvalsh(omega.T @ a @ omega)
    assert least == pytest.approx(values[0] / np.abs(values).max())
    assert least < 0


def test_what_is_not_finite_is_nan():
    a, omega, q, r = problem(definite=False)
    r[0, 1] = np.nan
    assert np.isnan(leave_one_out.xtrace(r, q.T @ a @ q, q.T @ omega, N, EPS)).all()
