"""Every experiment runs from end to end, and its summary has all that it has promised."""

import dataclasses
import importlib

import numpy as np
import pytest

from experiments import registry
from experiments.lib.runs import rundir

NAMES = [
    name
    for name in registry.summaries()
    if hasattr(importlib.import_module(f"experiments.{name}"), "lab")
]
# Programs of many networks; other experiments take the same paths, and `make test-slow` has these.
DEAR = {
    "fisher_explosion", "fisher_noisy_labels", "flat_optimisers", "flatness_and_gap", "grokking",
    "hessian_outliers", "implicit_regularization", "landscape", "lm_spectrum", "noise_shape",
    "sam_vs_sgd", "scale_invariance", "simple_first",
}  # fmt: skip
OF_NO_PAPER = {"quickstart", "flat_optimisers"}
EXACT = {"langevin", "typical_sample"}  # theory knows the number: there is no larger setting


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


def diverged(runs, name=""):
    """The same records with no number in them, as of runs that diverged at once."""
    if isinstance(runs, dict):
        return {key: diverged(value, str(key)) for key, value in runs.items()}
    if isinstance(runs, tuple):
        return type(runs)(*(diverged(value) for value in runs))
    counted = name.removeprefix("records_") in {"epoch", "time", "reached"}  # and not computed
    number = np.issubdtype(np.asarray(runs).dtype, np.floating)
    return np.full_like(runs, np.nan) if number and not counted else runs


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in DEAR else ()) for n in NAMES]
)
def test_the_smoke_preset(name, tmp_path, monkeypatch, capsys):
    """From end to end; and what diverged is judged and reported as well."""
    lab = importlib.import_module(f"experiments.{name}").lab
    config = dataclasses.replace(lab.presets["smoke"], out=tmp_path / "run", quiet=True)
    run, kept = lab._run, []
    monkeypatch.setattr(lab, "_run", lambda *given: kept.append(run(*given)) or kept[0])
    lab.main(config)
    assert "is left out" not in "".join(capsys.readouterr())
    summary = rundir.read_json(config.out / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(lab.claims)
    assert all(c["verdict"] == "not judged" for c in summary["claims"])
    for claim in summary["claims"]:
        assert [int(seed) for seed in claim["values"]] == list(config.seed_range())
    assert len(summary["figures"]) == len(lab._drawings) > 0
    assert all((config.out / figure["file"]).stat().st_size > 0 for figure in summary["figures"])
    monkeypatch.setattr(lab, "_run", lambda *given: diverged(kept[0]))
    lab.main(dataclasses.replace(config, out=tmp_path / "diverged"))


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_the_file(name):
    module = importlib.import_module(f"experiments.{name}")
    assert module.EXPERIMENT.presets is module.lab.presets
    assert {"smoke", "cpu"} <= set(module.lab.presets)
    assert "paper" in module.lab.presets or name in OF_NO_PAPER | EXACT
    assert all(config.preset == preset for preset, config in module.lab.presets.items())
    assert module.lab.presets["cpu"] == module.lab.presets["cpu"].__class__()
