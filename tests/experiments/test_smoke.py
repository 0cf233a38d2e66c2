"""Every experiment runs from end to end, and its summary has all that it has promised."""

import dataclasses
import importlib

import pytest

from experiments import registry
from experiments.lib.runs import rundir

NAMES = [
    name
    for name in registry.summaries()
    if hasattr(importlib.import_module(f"experiments.{name}"), "lab")
]
OF_NO_PAPER = {"quickstart", "flat_optimisers"}


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_preset(name, tmp_path):
    lab = importlib.import_module(f"experiments.{name}").lab
    config = dataclasses.replace(lab.presets["smoke"], out=tmp_path, quiet=True)
    lab.main(config)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(lab.claims)
    assert all(c["verdict"] == "not judged" for c in summary["claims"])
    for claim in summary["claims"]:
        assert [int(seed) for seed in claim["values"]] == list(config.seed_range())
    assert summary["figures"]
    assert all((tmp_path / figure["file"]).stat().st_size > 0 for figure in summary["figures"])


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_the_file(name):
    module = importlib.import_module(f"experiments.{name}")
    assert module.EXPERIMENT.presets is module.lab.presets
    assert {"smoke", "cpu"} <= set(module.lab.presets)
    assert "paper" in module.lab.presets or name in OF_NO_PAPER
    assert all(config.preset == preset for preset, config in module.lab.presets.items())
    assert module.lab.presets["cpu"] == module.lab.presets["cpu"].__class__()
