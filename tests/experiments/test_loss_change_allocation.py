"""Loss change allocation: the smoke preset, and allocations that sum to the change of the loss."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from experiments import loss_change_allocation as experiment
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.rundir import read_json
from experiments.lib.runs.trajectory import load_arrays
from experiments.lib.verdicts.claims import judge


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation_of_module):
    out = tmp_path_factory.mktemp("allocation")
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=out, quiet=True)
    experiment.main(config)
    return config


def test_the_smoke_preset_judges_all_claims(run):
    summary = read_json(run.out / "summary.json")
    assert {c["name"] for c in summary["claims"]} == set(experiment.CLAIMS)
    assert all(c["measured"] is not None for c in summary["claims"])
    by_name = {c["name"]: c for c in summary["claims"]}
    assert by_name["allocations-sum-to-the-change"]["verdict"] == "reproduced"


def test_every_step_is_conserved_and_split_by_sign_and_layer(run):
    records = load_arrays(run.out / "sgd" / "records" / "10.npz")
    change = np.diff(records["loss"][0])
    # Simpson's rule over steps of about 0.1, and float32
    np.testing.assert_allclose(records["total"][0, 1:], change, atol=1e-5)
    np.testing.assert_allclose(records["harm"] + records["help"], records["total"], atol=1e-6)
    np.testing.assert_allclose(records["layers"].sum(-1), records["total"], atol=1e-6)


def test_the_layers_are_those_of_the_network():
    net = FlatMlp((3, 4, 2))
    layers = np.asarray(experiment.layer_of(net))
    assert (layers == 0).sum() == 3 * 4 + 4
    assert (layers == 1).sum() == 4 * 2 + 2
    marked = net.unravel(jax.numpy.asarray(layers, jax.numpy.float32))
    assert (marked["layer_1"]["kernel"] == 1).all()


def test_made_up_shares_are_refused():
    claim = experiment.CLAIMS["nearly-half-hurt"]
    assert judge(claim, {0: 0.01, 1: 0.02, 2: 0.01}).verdict == "not reproduced"


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(run, command_line, tmp_path):
    command = ("loss_change_allocation", "--preset", "smoke", "--out", tmp_path, "--steps", 200)
    process = command_line(*command)
    first = tmp_path / "sgd" / "checkpoints" / "10"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "summary.json").exists()

    process = command_line(*command)
    output = process.communicate(timeout=240)
    assert process.returncode == 0, output
    config = dataclasses.replace(run, out=tmp_path / "whole", steps=200)
    experiment.main(config)
    whole = read_json(config.out / "summary.json")
    assert read_json(tmp_path / "summary.json")["claims"] == whole["claims"]
