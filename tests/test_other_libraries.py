"""What the page on other libraries shows without running it, where they are installed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.repository import ROOT

PAGE = ROOT / "docs" / "guide" / "other-libraries.md"


def shown(library):
    """The names that the page defines, the block of one library run after the first."""
    pytest.importorskip(library)
    text = PAGE.read_text()
    first = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = re.search(
        rf"<!-- not run: needs {library} -->\n```python\n(.*?)^```", text, re.M | re.S
    )
    names = {}
    for code in (first[1], block[1]):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_lineax():
    names = shown("lineax")
    flat = [jax.flatten_util.ravel_pytree(names[name])[0] for name in ("solution", "params")]
    matrix = np.asarray(names["G"].to_dense()) + 0.1 * np.eye(8)
    np.testing.assert_allclose(matrix @ flat[0], flat[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(names["back"].to_dense(), matrix, rtol=1e-5, atol=1e-6)


def test_matfree():
    names = shown("matfree")
    matrix = np.asarray(names["G"].to_dense())
    values = np.linalg.eigvalsh(matrix)
    # The standard error of 256 probes with random signs.
    off_diagonal = matrix - np.diag(np.diagonal(matrix))
    error = np.sqrt(2 * (off_diagonal**2).sum() / 256)
    assert abs(float(names["estimate"]) - np.trace(matrix)) < 5 * error
    np.testing.assert_allclose(jnp.max(names["values"]), values[-1], rtol=1e-3)
    np.testing.assert_allclose(names["back"].to_dense(), matrix, rtol=1e-5, atol=1e-6)
