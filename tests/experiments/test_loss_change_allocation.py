"""Loss change allocation: the shares sum to the change of the loss, and the claims can fail."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import loss_change_allocation as experiment
from experiments.lib.nets.architecture import Architecture
from experiments.lib.nets.flat import flat_network
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
    net = flat_network(Architecture(hidden=(4,), classes=2), (3,))
    layers, count = experiment.layers_of(net, (3,))
    assert count == 2
    assert (layers == 0).sum() == 3 * 4 + 4
    assert (layers == 1).sum() == 4 * 2 + 2
    marked = net.unravel(layers.astype(jnp.float32))
    assert (marked["layer_1"]["kernel"] == 1).all()


def test_layers_come_in_the_order_in_which_the_network_uses_them():
    net = flat_network(Architecture(network="mlp-2-4-batch"), (3,))
    layers, count = experiment.layers_of(net, (3,))
    marked = net.unravel(layers.astype(jnp.float32))
    names = ("Dense_0", "BatchNorm_0", "Dense_1", "BatchNorm_1", "head")
    assert count == len(names)
    for i, name in enumerate(names):
        assert all((leaf == i).all() for leaf in jax.tree.leaves(marked[name]))


def test_parts_and_momentum(quick_compilation):
    """Two updates of the heavy ball, the gradient from three parts of the training set."""
    net = flat_network(Architecture(hidden=(2,), classes=2), (3,))
    batch = (jax.random.normal(jax.random.key(0), (6, 3)), jnp.array([0, 1, 0, 0, 1, 1]))
    whole = experiment.loss_and_gradient
    params = net.init(jax.random.key(1))
    loss, gradient = whole(net, 1, params, batch)
    zeros = jnp.zeros_like(params)
    key = jax.random.key_data(jax.random.key(2))
    state = experiment.State(params, gradient, zeros, zeros, key)
    run = jax.tree.map(lambda a: a[None], (batch, state))
    end, records = experiment._advance(net, 3, None, 0.9, 0.5, *run, 2)
    first = params - 0.5 * gradient
    second = first + 0.9 * (first - params) - 0.5 * whole(net, 1, first, batch)[1]
    # float32, and sums in another order
    np.testing.assert_allclose(end.params[0], second, atol=1e-6)
    np.testing.assert_allclose(end.gradient[0], whole(net, 1, second, batch)[1], atol=1e-6)
    change = whole(net, 1, second, batch)[0] - loss
    # Simpson's rule over steps of about 0.1
    np.testing.assert_allclose(records["total"][0].sum(), change, atol=1e-4)


def test_parts_are_equal_and_batches_no_larger_than_the_data():
    with pytest.raises(ValueError, match="10 examples are not 3 equal parts"):
        experiment.Config(train_size=10, batch_size=5, parts=3)
    with pytest.raises(ValueError, match="batch_size 25 is above train_size 10"):
        experiment.Config(train_size=10, batch_size=25)


STEPS = 400


def _arm(hurting, harm, turned, *, layers=(-0.5, -0.5), linear=-1.0, together=1, total=-1.0):
    """Steps that change the loss by 1 in all; layers change together, or against each other."""
    waves = np.random.RandomState(0).randn(STEPS)
    each = np.array(layers) / STEPS + np.stack([waves, together * waves], 1)
    each += np.array(layers) / STEPS - each.mean(0)
    records = {
        "loss": np.linspace(0, -1, STEPS),
        "total": np.full(STEPS, total / STEPS),
        "linear": np.full(STEPS, linear / STEPS),
        "hurting": np.full(STEPS, hurting),
        "harm": np.full(STEPS, harm),
        "help": np.full(STEPS, -1.0),
        "turned": np.full(STEPS, turned),
        "layers": each,
    }
    found = {name: np.stack([v] * 3) for name, v in records.items()}
    found["harm"] *= np.array([[0.98], [1.0], [1.02]])
    return found | {"first_loss": np.zeros(3)}


def _judged(**arms):
    config = experiment.Config(seeds=3, first_steps=5)
    found = experiment.lab.judged(arms, config)
    return {
        verdict: {v.claim.name for v in found if v.verdict == verdict}
        for verdict in ("reproduced", "void")
    }


def test_verdicts_on_made_up_runs():
    slow, small, large = _arm(0.001, 0.001, 0.0), _arm(0.4, 0.1, 0.4), _arm(0.5, 0.4, 0.5)
    sgd = _arm(0.48, 0.2, 0.5, layers=(-1.1, 0.1), linear=-1.2)
    good = {"reproduced": set(experiment.lab.claims), "void": set()}
    assert _judged(sgd=sgd, small=small, large=large, gd=slow) == good
    other = _arm(0.01, 0.2, 0.01, together=-1, total=-1.1)
    bad = _judged(sgd=other, small=large, large=small, gd=_arm(0.4, 0.2, 0.4))
    assert not bad["reproduced"]
    same = _judged(sgd=sgd, small=small, large=large, gd=sgd)
    assert {"nearly-half-hurt", "updates-oscillate", "a-layer-hurts"} <= same["void"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(command_line, tmp_path):
    def command(out):  # processes all: programs of the same compiler options
        options = ("--preset", "smoke", "--out", out, "--steps", 200)
        return command_line("loss_change_allocation", *options)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = command(killed)
    first = killed / "sgd" / "checkpoints" / "10"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (killed / "summary.json").exists()

    for out in (killed, whole):
        process = command(out)
        output = process.communicate(timeout=240)
        assert process.returncode == 0, output
    claims = [read_json(out / "summary.json")["claims"] for out in (killed, whole)]
    assert claims[0] == claims[1]
