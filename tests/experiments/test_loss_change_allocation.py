"""Loss change allocation: shares that sum to the change of the loss, and claims that can fail."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from experiments import loss_change_allocation as experiment
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.rundir import read_json

SMOKE = dataclasses.replace(experiment.lab.presets["smoke"], quiet=True, other_rates=())


def test_every_step_is_conserved_and_split_by_sign_and_layer(tmp_path, quick_compilation):
    own = experiment.run(SMOKE, tmp_path)["sgd"]
    # Simpson's rule over steps of about 0.1, and float32
    np.testing.assert_allclose(own["total"][0, 1:], np.diff(own["loss"][0]), atol=1e-5)
    np.testing.assert_allclose(own["harm"] + own["help"], own["total"], atol=1e-6)
    np.testing.assert_allclose(own["layers"].sum(-1), own["total"], atol=1e-6)
    np.testing.assert_allclose(own["allocation"].sum(-1), own["total"].sum(-1), atol=1e-6)


def test_the_layers_are_those_of_the_network():
    net = FlatMlp((3, 4, 2))
    layers = np.asarray(experiment.layer_of(net))
    assert (layers == 0).sum() == 3 * 4 + 4
    assert (layers == 1).sum() == 4 * 2 + 2
    marked = net.unravel(jax.numpy.asarray(layers, jax.numpy.float32))
    assert (marked["layer_1"]["kernel"] == 1).all()


def _reproduced(missed, hurting, slow, turned, harm, layer):
    config = experiment.Config(seeds=3, settled=1)

    def arm(share, turns, harm, layer):
        rows = np.ones((3, 4)) + np.array([[0.0], [0.001], [-0.001]])
        return {
            "loss": 1.0 - 0.1 * np.arange(1, 5) * np.ones((3, 1)), "first_loss": np.ones(3),
            "total": -0.1 * (1 + missed) * np.ones((3, 4)), "first_order": -0.2 * rows,
            "hurting": share * rows, "turned": turns * rows,
            "harm": harm * rows, "help": -rows,
            "layers": -0.1 * np.array([layer, 1 - layer]) * rows[..., None],
        }  # fmt: skip

    runs = {
        name: arm(hurting, turned, harm(rate), layer)
        for name, rate in experiment.rates(config).items()
    }
    runs["gd"] = arm(slow, 0.1, 0.01, 0.4)
    return {v.claim.name for v in experiment.lab.judged(runs, config) if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    good = _reproduced(1e-6, 0.48, 0.001, 0.5, lambda rate: rate, -0.1)
    assert good == set(experiment.lab.claims)
    assert not _reproduced(1e-2, 0.3, 0.1, 0.2, lambda rate: abs(rate - 0.1), 0.4)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(command_line, tmp_path):
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
    whole = command_line(*command, "--out", tmp_path / "whole")
    output = whole.communicate(timeout=240)
    assert whole.returncode == 0, output
    found, expected = (read_json(f / "summary.json") for f in (tmp_path, tmp_path / "whole"))
    assert found["claims"] == expected["claims"]
