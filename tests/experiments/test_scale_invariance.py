"""The laws hold for the network and only there, what is measured is dense, and claims can fail."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from experiments import scale_invariance as experiment
from experiments.lib.data.small import SmallData
from experiments.lib.nets.named import model
from experiments.lib.training.recipes import Recipe
from experiments.scale_invariance.laws import laws
from experiments.scale_invariance.numbers import jumps, smooth
from experiments.scale_invariance.training import measure, on_sphere, to_sphere, with_decay


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """Nothing here depends on how well programs are optimised."""


def test_the_laws_hold_and_what_must_not_pass_does_not():
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, law_burn_in=300, law_steps=300)
    found = laws(config, 0)
    exact = ("value", "gradient", "hessian", "orthogonal", "norm_law", "same_path")
    assert max(found[name] for name in exact) < 1e-7  # rounding, that grows along a path
    assert min(found[f"{n}_null"] for n in ("identities", "norm_law", "same_path")) > 1e-3
    # The length is in balance up to its fluctuation over 300 updates of 200 time constants.
    assert found["angle"] == pytest.approx(1, abs=0.1)
    assert found["angle_null"] < 0.8


def test_the_head_is_no_parameter_and_batch_norm_has_none():
    image, channels = jnp.zeros((1, 32, 32, 3)), (3, 32, 64, 128, 256)
    counts = {
        "PerceptronSI": 64 * (3072 + 128),
        "ConvNetSI": 9 * sum(a * b for a, b in itertools.pairwise(channels)),
    }
    for name, count in counts.items():
        net = model(f"experiments.lib.nets.scale_invariant:{name}", 10)
        params, _ = jax.eval_shape(net.init, jax.random.key(0), image)
        assert sum(a.size for a in jax.tree.leaves(params)) == count
    _, state = model(experiment.NETWORK, 10).init(jax.random.key(0), image[:, :2, :2])
    assert jnp.linalg.norm(state["frozen"]["head"]) == pytest.approx(10, rel=1e-5)


def test_steps_on_the_sphere_and_with_weight_decay():
    w, g = {"a": jnp.array([0.6, 0.8])}, {"a": jnp.array([8.0, -6.0])}
    update, _ = on_sphere(0.05).update(g, optax.EmptyState(), w)
    moved = np.array([0.6 - 0.4, 0.8 + 0.3])
    new = optax.apply_updates(w, update)["a"]
    np.testing.assert_allclose(new, moved / np.linalg.norm(moved), rtol=1e-6)
    start, _ = to_sphere(({"a": jnp.array([[3.0, 4.0], [0.0, 2.0]])}, None))
    np.testing.assert_allclose(start["a"], [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    recipe = Recipe(batch_size=2, epochs=2)  # an update an epoch, so a change after the first
    tx = with_decay(recipe, 2, {"rate": 0.1, "last_rate": 0.01, "decay": 0.5})
    state = tx.init(w)
    for rate in (0.1, 0.01):
        update, state = tx.update(g, state, w)
        np.testing.assert_allclose(update["a"], -rate * (g["a"] + 0.5 * w["a"]), rtol=1e-6)


def test_what_is_recorded_against_the_dense_matrix():
    recipe = Recipe(network=experiment.NETWORK, loss="squared_error", batch_size=4)
    draw = np.random.default_rng(0)
    inputs, targets = jnp.asarray(draw.normal(size=(12, 2, 2, 1))), jnp.arange(12) % 10
    data = SmallData(inputs, targets, targets, inputs, targets)
    net = model(experiment.NETWORK, 10)
    params, state = net.init(jax.random.key(0), inputs[:1])
    flat, unravel = ravel_pytree(params)

    def loss(w, part=slice(None)):
        logits, _ = net.apply(unravel(w), state, inputs[part], train=True)
        return 0.5 * jnp.square(logits - jax.nn.one_hot(targets[part], 10)).sum(-1).mean()

    found = jax.jit(measure(recipe, None, 20))(params, state, data, jax.random.key(1))
    assert found["loss"] == pytest.approx(float(loss(flat)), rel=1e-5)
    gradient = jax.jit(jax.grad(loss))
    squares = [jnp.square(gradient(flat, np.arange(i, i + 4))).sum() for i in (0, 4, 8)]
    assert found["squared_gradients"] == pytest.approx(float(np.mean(squares)), rel=1e-4)
    product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v,))[1])
    vector = jax.random.normal(jax.random.key(2), flat.shape)
    for _ in range(60):  # power iteration: the dense matrix has 8,000 rows
        vector = product(vector / jnp.linalg.norm(vector))
    expected = float(jnp.linalg.norm(vector) * (flat @ flat))
    assert found["effective_sharpness"] == pytest.approx(expected, rel=0.02)


def test_jumps_are_counted_once_and_only_from_the_usual_value():
    calm = np.full(40, 1.0)
    assert jumps(calm) == 0
    spiked = calm.copy()
    spiked[[10, 11, 30]] = 20.0
    assert jumps(spiked) == 2
    assert jumps(np.where(spiked > 1, 9.0, 1.0)) == 0
    # It begins far above: that is no jump; nor is a second rise from a height.
    assert jumps(np.r_[np.geomspace(1e3, 1, 20), 1, 1, 20, 5, 20, calm]) == 1
    np.testing.assert_allclose(smooth(np.arange(7.0)), [2, 3, 4])


def _judged(*, laws, sphere, jumps, phases, annealed):
    """Three seeds that differ a little."""
    config = experiment.Config(seeds=3)
    wobble = np.array([[0.99], [1.0], [1.01]])
    epochs = np.tile(np.arange(41), (3, 1))
    time = np.linspace(0, 1, 41)

    def arm(**records):
        return {"epoch": epochs} | {n: wobble * np.broadcast_to(v, (3, 41))
                                    for n, v in records.items()}  # fmt: skip

    error, null, angle = laws
    exact = ("value", "gradient", "hessian", "orthogonal", "norm_law", "same_path")
    runs = {"laws": dict.fromkeys(exact, error * wobble[:, 0])}
    runs["laws"] |= {f"{n}_null": null * wobble[:, 0]
                     for n in ("identities", "norm_law", "same_path")}  # fmt: skip
    runs["laws"] |= {"angle": angle * wobble[:, 0], "angle_null": 0.5 * wobble[:, 0]}
    for rate, (power, accuracy, square) in zip(config.regimes, sphere, strict=True):
        loss = (time + 0.1) ** -power
        runs[f"sphere {rate:g}"] = arm(
            loss=loss, train_accuracy=accuracy, squared_gradients=square
        )  # fmt: skip
    spikes = np.where(np.arange(41) % 5 == 4, 50.0 if jumps else 5.0, 1.0)
    runs["decay"], runs["no decay"] = arm(loss=spikes), arm(loss=1.0)
    peak, slope, at_edge, worse = phases
    norm = np.exp(-np.maximum(time - 0.2, 0))
    value = at_edge * 2 / config.phase_rate * norm ** (2 * slope)
    value = np.where(time < 0.2, value / peak, value)
    runs["phases"] = arm(norm=norm, effective_sharpness=value, test_loss=1 + worse * time)
    still = 10 + np.sin(37 * time)
    runs["phases, no decay"] = arm(norm=1 + 0.01 * time, effective_sharpness=still, test_loss=1.0)
    rise, gain = annealed
    late = time > 0.5
    flat = np.where(np.arange(41) == 1, 1.0, 0.999)
    runs["annealed"] = arm(
        norm=norm, effective_sharpness=1 + rise * late, test_accuracy=0.5 + gain * late
    )  # fmt: skip
    runs["not annealed"] = arm(norm=norm, effective_sharpness=flat, test_accuracy=0.5)
    # Seeds that all fluctuate alike would make differences of arms exact.
    runs["not annealed"]["test_accuracy"] = 0.5 + 0.001 * wobble * np.ones(41)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    good = _judged(
        laws=(1e-10, 0.1, 1.0), jumps=True,
        sphere=[(1.5, 1.0, 1.0), (0.0, 0.7, 100.0), (0.0, 0.1, 1e9)],
        phases=(1.3, 1.0, 1.0, -0.5), annealed=(0.5, 0.1),
    )  # fmt: skip
    assert good == dict.fromkeys(experiment.lab.claims, "reproduced")
    bad = _judged(
        laws=(1e-3, 0.1, 1.2), jumps=False,
        sphere=[(0.0, 0.1, 1.0), (1.5, 0.1, 1e9), (1.5, 0.9, 1.0)],
        phases=(1.0, 0.0, 0.5, 0.5), annealed=(-0.5, -0.1),
    )  # fmt: skip
    assert not {name for name, verdict in bad.items() if verdict == "reproduced"}
    # Laws that what must not pass obeys as well, and everything at the edge of nothing.
    void = _judged(
        laws=(1e-10, 1e-11, 1.0), jumps=True,
        sphere=[(1.5, 1.0, 1.0), (1.5, 0.1, 1e9), (0.0, 0.1, 1e9)],
        phases=(1.3, 1.0, 1.0, -0.5), annealed=(0.5, 0.1),
    )  # fmt: skip
    names = {name for name, verdict in void.items() if verdict == "void"}
    assert names == {"identities", "norm-law", "same-path", "convergence", "divergence",
                     "divergence-turns"}  # fmt: skip
