"""An estimator of a user's own beside ours."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as runner
from benchmarks import _guests, accuracy
from tests.examples import blocks
from tests.repository import ROOT

GUESTS = """
import flatjax
from my_package import function

def library(op, structure, key, num_products):
    found = flatjax.trace(op, key=key, num_products=num_products, structure=structure,
                          method="hutchinson")
    return {"trace": found.value}

def greedy(op, structure, key, num_products):
    return function(op, structure, key, num_products + 1)

def wordless(op, structure, key, num_products):
    return {"norm": 1.0}

def short_of_arguments(op, key):
    return {"trace": 0.0}
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    page = blocks((ROOT / "CONTRIBUTING.md").read_text())
    (code,) = [code for _, code in page if "def function(op" in code]
    (tmp_path / "my_package.py").write_text(code)
    (tmp_path / "my_guests.py").write_text(GUESTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(accuracy, "SIZE", 64)
    monkeypatch.setattr(accuracy, "SEEDS", 2)
    monkeypatch.setattr(accuracy, "PRODUCTS", {True: (12,), False: ()})
    yield
    for name in ("my_guests", "my_package"):
        sys.modules.pop(name, None)


def run(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--output", str(tmp_path / "out")])
    return runner.main()


def test_its_row_stands_beside_ours(monkeypatch, tmp_path, capsys):
    ours = {"trace: hutchinson", "top 5: eigsh"}
    every = accuracy.estimators
    monkeypatch.setattr(
        accuracy, "estimators", lambda count: {k: f for k, f in every(count).items() if k in ours}
    )
    known = accuracy.spectra()
    monkeypatch.setattr(accuracy, "spectra", lambda: {"outliers": known["outliers"]})
    guests = ["--estimator", "my_package:function", "--estimator", "my_guests:library"]
    assert run(monkeypatch, tmp_path, "accuracy", "--short", *guests) == 0
    results = json.loads((tmp_path / "out" / "accuracy-beside.json").read_text())["results"]
    for found in results.values():
        # What answers another question is left out.
        assert set(found) == {"trace: hutchinson", *(f"trace: {name}" for name in guests[1::2])}
        assert all([p["products"] for p in points] == [12] for points in found.values())
        # One of the guests is our own method: the same seeds, the same probes.
        assert found["trace: my_guests:library"] == found["trace: hutchinson"]
    assert "trace: my_package:function" in capsys.readouterr().out


def test_products_are_counted_where_they_run():
    (op, key, _), *_ = accuracy.starts(np.ones(64))
    like = jax.ShapeDtypeStruct((64,), jnp.float32)
    _guests.answer("x", _guests.load("my_guests:library"), op, like, key, 12)
    assert len(_guests._SPENT) == 12


def test_every_quantity_has_its_error():
    values = np.asarray([3.0, -1.0, 2.0, *np.zeros(61)])
    density = (values, np.full(64, 1 / 64))
    shifted = (values + values.std(), np.full(64, 1 / 64))
    assert accuracy.error_of("top", jnp.asarray([3.0, 1.0]), values) == 0.5
    assert accuracy.error_of("top", 3.0, values) == 0
    assert accuracy.error_of("trace", jnp.asarray(5.0), values) == 0.25
    assert accuracy.error_of("density", density, values) == 0
    assert accuracy.error_of("density", shifted, values) == pytest.approx(1)
    exact = np.diag(jax.vmap(lambda v: accuracy.rotated(values, v))(jnp.eye(64)))
    assert accuracy.error_of("diagonal", exact, values) < 1e-6
    assert accuracy.error_of("diagonal", 2 * exact, values) == pytest.approx(1)
    assert [_guests.title("top", [1.0]), _guests.title("top", [2.0, 1.0])] == ["largest", "top 2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_guests", "package.module:function, got 'my_guests'"),
        ("nowhere.module:f", "no module 'nowhere' in the current folder"),
        ("my_guests:absent", "my_guests has no function 'absent'"),
        ("my_guests:short_of_arguments", "called as f.op, structure, key, num_products"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_runs(
    name, message, monkeypatch, tmp_path, capsys
):
    with pytest.raises(ValueError, match=message):
        _guests.load(name)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, "accuracy", "--estimator", name)
    assert "--estimator" in capsys.readouterr().err


def test_it_belongs_to_one_benchmark(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, "growth", "--estimator", "my_package:function")
    assert "belongs to accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("greedy", "spent 13 products of the 12 allowed"), ("wordless", "top, trace.*got .'norm'")],
)
def test_what_is_wrong_with_it_is_said_at_its_first_answer(name, message):
    guest = _guests.load(f"my_guests:{name}")
    values = np.ones(64)
    with pytest.raises(ValueError, match=message):
        accuracy.beside(f"my_guests:{name}", guest, 12, values)
