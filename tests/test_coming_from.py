"""What `docs/coming-from.md` says of other libraries; needs them (`make bench`)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.examples import blocks
from tests.repository import ROOT

PAGE = ROOT / "docs" / "coming-from.md"
torch = pytest.importorskip("torch")

# The peers warn: of graphs that are kept, of old functions.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def run(section: str) -> dict:
    """The names that the blocks of the first section and of this one leave behind."""
    _, twice, *rest = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in rest if part.startswith(section + "\n")]
    return executed(text, dict(shared(twice)))


@functools.cache
def shared(text: str) -> dict:
    return executed(text, {})


def executed(text: str, names: dict) -> dict:
    for _, code in blocks(text, all_of_them=True):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def rows(section: str) -> dict[str, list[str]]:
    """The last table of a section: its cells by the first one."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = re.findall(r"^\| (.+) \|$", text.split("\n| | ")[1], re.MULTILINE)[1:]
    return {name: cells for name, *cells in (line.split(" | ") for line in table)}


def listed(values) -> str:
    return ", ".join(f"{float(v):.3f}" for v in np.sort(np.ravel(np.asarray(values)))[::-1])


def agree(section, row, theirs, ours, rtol):
    """Both sides give the same numbers, and the page has them."""
    np.testing.assert_allclose(
        np.sort(np.ravel(theirs)), np.sort(np.ravel(np.asarray(ours))), rtol=rtol
    )
    assert rows(section)[row] == [listed(theirs), listed(ours)]


def estimates_agree(section, row, theirs, found, exact):
    """Two estimates of a trace; `theirs` has an error of its own or none."""
    value, error = theirs
    assert abs(value - exact) < 4 * max(error, float(found.standard_error))
    assert abs(float(found.value) - exact) < 4 * float(found.standard_error)
    ours = f"{float(found.value):.2f} ± {float(found.standard_error):.2f}"
    said = f"{value:.2f} ± {error:.2f}" if error else f"{value:.2f}"
    assert rows(section)[row] == [said, ours]


def exact_trace(names) -> float:
    return float(jnp.trace(names["hessian"].to_dense()))


def test_the_twins_are_twins():
    names = run("optax.contrib.sam")
    loss = names["criterion"](names["model"](names["data"][0]), names["data"][1]).item()
    assert loss == pytest.approx(float(names["loss_fn"](names["params"], names["batch"])), rel=1e-5)


def test_pyhessian():
    pytest.importorskip("pyhessian")
    names = run("PyHessian")
    agree("PyHessian", "three eigenvalues", names["values"], names["top"].values, 1e-3)
    samples = np.asarray(names["samples"])
    theirs = samples.mean(), samples.std(ddof=1) / len(samples) ** 0.5
    estimates_agree("PyHessian", "trace", theirs, names["total"], exact_trace(names))
    with pytest.raises((AttributeError, RuntimeError), match="eig"):
        names["theirs"].density(iter=4)
    assert jnp.isclose(names["density"].weights.sum(), 1, rtol=1e-5)


def test_curvlinops():
    pytest.importorskip("curvlinops")
    names = run("curvlinops")
    agree("curvlinops", "three largest, Hessian", names["values"], names["top"].values, 1e-4)
    pairs = names["ggn_values"], names["ggn_top"].values
    agree("curvlinops", "three largest, Gauss-Newton", *pairs, 1e-4)
    theirs = float(names["total_of_theirs"]), 0.0
    estimates_agree("curvlinops", "trace", theirs, names["total"], exact_trace(names))


def test_hessian_eigenthings():
    pytest.importorskip("hessian_eigenthings")
    names = run("hessian-eigenthings")
    found = names["found"].eigenvalues
    agree("hessian-eigenthings", "three largest", found, names["top"].values, 1e-4)
    theirs = names["total_of_theirs"].estimate, names["total_of_theirs"].stderr
    estimates_agree("hessian-eigenthings", "trace", theirs, names["total"], exact_trace(names))


def test_loss_landscapes():
    pytest.importorskip("loss_landscapes")
    names = run("loss-landscapes")
    line, surface = names["line"].losses, np.asarray(names["surface"].losses)
    np.testing.assert_allclose(names["line_of_theirs"], line, rtol=1e-4)
    # Even rows of theirs begin one step later than odd ones.
    shifted = [row[1:] if i % 2 == 0 else row[:-1] for i, row in enumerate(surface)]
    np.testing.assert_allclose(names["surface_of_theirs"], shifted, rtol=1e-4)
    ends = names["line_of_theirs"][-1], line[-1]
    agree("loss-landscapes", "loss at the end of the line", *ends, 1e-4)
    inner = names["surface_of_theirs"][4, 4], surface[4, 5]
    agree("loss-landscapes", "loss in the plane at 0.4 and 0.5", *inner, 1e-4)


def test_optax_sam():
    names = run("optax.contrib.sam")
    plain = jax.tree.leaves(names["train"](names["optax"].sgd(0.1), None))
    ours = jax.tree.leaves(names["with_ours"])
    # The two agree to rounding, and the radius matters far more than that.
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(plain, ours, strict=True)) > 1e-3
