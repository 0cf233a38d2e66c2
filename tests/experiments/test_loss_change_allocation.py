"""Loss change allocation: the shares sum to the change of the loss, and the claims can fail."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from experiments import loss_change_allocation as experiment
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.rundir import read_json


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, quick_compilation_of_module):
    out = tmp_path_factory.mktemp("allocation")
    return dataclasses.replace(experiment.lab.presets["smoke"], out=out, quiet=True)


def test_every_step_is_conserved_and_split_by_sign_and_layer(smoke):
    records = experiment.run(smoke, smoke.out)["sgd"]
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


def _arm(hurting, harm, turned, layers=(-0.5, -0.5), loss=-1.0):
    """Two steps that change the loss from 0 to `loss`, as it is allocated to -1."""
    records = {
        "loss": [loss / 2, loss],
        "total": [-0.5, -0.5],
        "hurting": [hurting] * 2,
        "harm": [harm] * 2,
        "help": [-1.0] * 2,
        "turned": [0.0, turned],
        "layers": [layers] * 2,
    }
    found = {name: np.stack([v] * 3) for name, v in records.items()}
    return found | {"first_loss": np.zeros(3)}


def _kept(sgd, slow):
    found = experiment.lab.judged({"sgd": sgd, "gd": slow}, experiment.Config(seeds=3))
    return {v.claim.name for v in found if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    slow = _arm(0.001, 0.001, 0.0)
    assert _kept(_arm(0.4, 0.2, 0.45), slow) == set(experiment.lab.claims)
    assert not _kept(_arm(0.01, 0.01, 0.01, (0.5, -1.0), loss=-1.1), _arm(0.4, 0.2, 0.4))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(smoke, command_line, tmp_path):
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
    config = dataclasses.replace(smoke, out=tmp_path / "whole", steps=200)
    experiment.lab.main(config)
    whole = read_json(config.out / "summary.json")
    assert read_json(tmp_path / "summary.json")["claims"] == whole["claims"]
