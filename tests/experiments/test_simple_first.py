"""Information, modes and amplitudes are those of their definitions, and the claims can fail."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import simple_first as experiment
from experiments.lib.data.small import small_data
from experiments.simple_first import fourier, information, kernel, numbers


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers are the same at any optimisation of the programs."""


def _entropy(*labels):
    """Of the empirical joint distribution, in nats."""
    counts = np.unique(np.stack(labels), axis=1, return_counts=True)[1]
    shares = counts / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_information_from_entropies():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    flip = lambda p: np.where(rng.random(200) < p, 1 - y, y)  # noqa: E731
    linear, found = flip(0.2), np.stack([flip(0.4), flip(0.05)])
    got = information.information(found, y, linear)
    h = _entropy
    for i, f in enumerate(found):
        whole = h(f) + h(y) - h(f, y)
        rest = h(f, linear) + h(y, linear) - h(f, y, linear) - h(linear)
        assert got["whole"][i] == pytest.approx(whole)
        assert got["rest"][i] == pytest.approx(rest)
        assert got["mu"][i] == pytest.approx(whole - rest)
        assert got["accuracy"][i] == (f == y).mean()
        assert got["agreement"][i] == (f == linear).mean()
    assert got["linear_accuracy"][0] == (linear == y).mean()
    # What is the linear classifier tells nothing beyond it.
    itself = information.information(linear[None], y, linear)
    assert itself["rest"][0] == pytest.approx(0, abs=1e-12)


def test_errors_elsewhere_are_as_many():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 500)
    like = np.where(rng.random(500) < np.where(y, 0.3, 0.1), 1 - y, y)
    found = information.with_errors_elsewhere(y, like, 0)
    for label in (0, 1):
        assert ((found != y) & (y == label)).sum() == ((like != y) & (y == label)).sum()
    both = ((found != y) & (like != y)).sum()
    assert both < 0.6 * (like != y).sum()


def test_the_linear_classifier_of_odd_and_even():
    data = information.odd_or_even(small_data("digits", seed=0, train_size=100, test_size=300))
    original = small_data("digits", seed=0, train_size=100, test_size=300)
    np.testing.assert_array_equal(data.test_targets, original.test_targets % 2)
    np.testing.assert_array_equal(data.targets, original.targets % 2)
    accuracy = (information.linear_answers(data) == data.test_targets).mean()
    assert 0.75 < accuracy < 0.97


def test_modes_decay_at_their_rates_and_no_others_do():
    narrow, wide = (kernel.modes(0, 12, width, 20, 3) for width in (8, 128))
    for found in (narrow, wide):
        # Rounding of a decay over twenty steps.
        np.testing.assert_allclose(found["rates"], found["theory"], rtol=1e-8)
        assert found["theory"][0] == pytest.approx(kernel.STRENGTH)
        assert (np.diff(found["theory"]) <= 0).all()
    assert abs(narrow["rates"] / narrow["other"] - 1).max() > 0.03
    assert 0 < wide["apart"] < narrow["apart"] / 4


def test_how_far_the_network_is_from_its_linearisation(monkeypatch):
    data = small_data("digits", seed=0, train_size=6)
    targets = np.where(data.targets % 2, 1.0, -1.0)[:, None]
    ends = targets + 2.0, (targets + 1.0, targets + 2.5)
    monkeypatch.setattr(kernel, "_descend", lambda *given: ends)
    eigenpairs = np.arange(6.0, 0.0, -1.0), np.eye(6)
    monkeypatch.setattr(kernel, "_eigenpairs", lambda *given: eigenpairs)
    found = kernel.modes(0, 6, 4, 2, 3)
    assert found["apart"] == pytest.approx(0.5 / 2.0)
    np.testing.assert_allclose(found["rates"], 1 - 2.0**0.5)
    np.testing.assert_allclose(found["theory"], kernel.STRENGTH * np.array([6, 5, 4]) / 6)


def test_the_linearised_network_step_by_step(x64):
    del x64
    rng = np.random.default_rng(0)
    inputs, targets = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 1)))
    start = kernel.init_mlp(jax.random.key(0), (3, 4, 1))
    flat, back = jax.flatten_util.ravel_pytree(start)
    model = lambda p: kernel.model_fn(back(p), inputs)[:, 0]  # noqa: E731
    jacobian, first = jax.jacobian(model)(flat), model(flat)
    moves, params = 0 * flat, flat
    for _ in range(3):
        moves = moves - 0.2 * jacobian.T @ (first + jacobian @ moves - targets[:, 0]) / 5
        params = params - 0.2 * jax.jacobian(model)(params).T @ (model(params) - targets[:, 0]) / 5
    linear, (before, after) = kernel._descend(start, (inputs, targets), 0.2, 3)
    np.testing.assert_allclose(linear[:, 0], first + jacobian @ moves, rtol=1e-10)
    np.testing.assert_allclose(before[:, 0], first, rtol=1e-10)
    np.testing.assert_allclose(after[:, 0], model(params), rtol=1e-10)
    expected = np.linalg.eigvalsh(jacobian @ jacobian.T)[::-1]
    np.testing.assert_allclose(kernel._eigenpairs(start, inputs)[0], expected, rtol=1e-8)


def test_amplitudes_are_those_of_the_sines(monkeypatch):
    # A model that answers 0.5 sin(pi x) + 2 sin(4 pi x), whatever its parameters.
    x = lambda inputs: jnp.pi * inputs  # noqa: E731
    waves = lambda p, inputs, **_: 0.5 * jnp.sin(x(inputs)) + 2 * jnp.sin(4 * x(inputs))  # noqa: E731
    monkeypatch.setattr(fourier, "apply_mlp", waves)
    found = fourier.amplitudes(0, (1, 3, 4), 2, 2, 1, shuffled=False)
    np.testing.assert_allclose(found, [[0.5, 0, 2]] * 2, atol=1e-5)
    shuffled = fourier.amplitudes(0, (1, 3, 4), 2, 2, 1, shuffled=True)
    assert abs(shuffled[:, 2]).max() < 1


def test_training_lowers_the_distance_from_the_sines():
    found = fourier.amplitudes(0, (1,), 8, 3, 60, shuffled=False)
    assert abs(1 - found[-1, 0]) < abs(1 - found[0, 0]) < 1


def test_when_a_sine_is_learned():
    amplitudes = np.array([[0.1, 0.0, 0.95], [0.9, 0.2, 0.5], [0.4, 0.89, 0.2]])
    np.testing.assert_array_equal(fourier.learned_after(amplitudes, 10), [20, 30, 10])


def test_the_share_of_high_frequencies(monkeypatch):
    n = experiment.ON_LINE
    inputs = np.zeros((2 * experiment.LINES, 1), np.float32)
    inputs[experiment.LINES :] = 1.0
    data = types.SimpleNamespace(test_inputs=inputs)

    def share(cycles):
        wave = lambda recipe, params, state, x: jnp.sin(2 * jnp.pi * cycles * x * (n - 1) / n)  # noqa: E731
        monkeypatch.setattr(experiment.recipes, "logits", wave)
        found = experiment.high_frequencies(None, None, None, data, None)
        return float(found["high_frequencies"])

    assert share(3) < 0.01
    assert share(12) > 0.99


def _runs(config, *, recovered=0.85, early=0.05, best=0.5, rest=0.2, gain=0.1, rate=1.0, wide=0.05,
          order=3.0):  # fmt: skip
    """Three seeds whose numbers are those given, and nulls that fail."""
    seeds, epochs = np.array([0.99, 1.0, 1.01])[:, None], np.arange(40)

    def over(*values):
        return np.repeat(values, 10)[None] * np.ones((3, 1))

    error = over(0.8, best * 0.4, 0.4, 0.4)
    noisy = {
        "epoch": np.tile(epochs, (3, 1)), "clean_fit": over(0.5, 0.92, 1.0, 1.0),
        "noisy_recovered": over(0.4, recovered, 0.2, 0.0) * seeds,
        "noisy_fit": over(0.1, early, 0.6, 1.0) * seeds,
        "test_accuracy": 1 - error, "high_frequencies": over(1.0, 2.0, 1.0, 1.0),
    }  # fmt: skip
    clean = noisy | {"test_accuracy": 1 - over(0.8, 0.1, 0.1, 0.1)}
    two = {
        "mu": over(0.1, 0.4, 0.4, 0.4), "rest": over(0.01, 0.2 * rest, 0.15, 0.2) * seeds,
        "other_mu": over(0.1, 0.2, 0.3, 0.4), "other_rest": over(0.1, 0.1, 0.15, 0.2),
        "accuracy": over(0.5, 0.91, 0.95, 0.9 + gain), "linear_accuracy": over(0.9, 0.9, 0.9, 0.9),
    }  # fmt: skip
    theory = np.tile(np.geomspace(0.1, 0.005, config.modes), (3, 1))
    modes = {"theory": theory, "rates": rate * theory, "other": 1.3 * theory}
    narrow = np.array([0.02, 0.03, 0.025])
    records = np.arange(1, 201)[None, :, None] * seeds[..., None]
    times = 5 * order ** np.arange(3)
    return {
        "noisy": noisy, "clean": clean, "two classes": two,
        "width 64": modes | {"apart": narrow}, "width 1024": modes | {"apart": wide * narrow},
        "sines": {"ordered": records / times, "shuffled": records / np.array([9.0, 9.0, 9.0])},
    }  # fmt: skip


def _failing(**changes):
    config = experiment.Config(seeds=3)
    judged = experiment.lab.judged(_runs(config, **changes), config)
    return {v.claim.name for v in judged if v.verdict != "reproduced"}


def test_verdicts_on_made_up_runs():
    assert not _failing()
    assert _failing(recovered=0.7) == {"wrong-labels-are-corrected"}
    assert _failing(early=0.2) == {"wrong-labels-come-later"}
    assert _failing(best=0.9) == {"early-stopping"}
    assert _failing(rest=0.5) == {"linear-first"}
    assert _failing(gain=0.03) == {"more-than-linear"}
    assert _failing(rate=1.04) == _failing(rate=0.96) == {"modes-decay-at-their-rates"}
    assert _failing(wide=0.4) == {"wide-is-linear"}
    assert _failing(order=0.5) == {"low-frequencies-first"}


def test_numbers_by_hand():
    reached = np.array([[False, True, True], [False, False, False]])
    values = np.array([[1.0, 2.0, 3.0]] * 2)
    np.testing.assert_array_equal(numbers.first(reached, values), [2.0, np.nan])
    np.testing.assert_allclose(numbers.last(np.arange(40.0)[None]), 37.5)
    config = experiment.Config(seeds=3)
    runs = _runs(config)
    two = runs["two classes"]
    np.testing.assert_allclose(numbers.rest_on_plateau("other_")(runs, config), 1)
    two["mu"][:, :20] = np.repeat([0.37, 0.385], 10)  # 0.95 of 0.4 is 0.38
    two["rest"][:, :20] = np.repeat([0.01, 0.06], 10)
    two["rest"][:, 20:] = 0.2
    np.testing.assert_allclose(numbers.rest_on_plateau("")(runs, config), 0.3)
    np.testing.assert_allclose(numbers.beyond_linear_at_first(runs, config), 0.01)
    np.testing.assert_allclose(numbers.early_stopping("noisy")(runs, config), 0.5)
    np.testing.assert_allclose(numbers.apart(runs, config), 0.05)
    shifted = numbers.apart_of_another(runs, config)
    np.testing.assert_allclose(shifted, [0.025 / 0.02, 0.02 / 0.03, 0.03 / 0.025])
    runs["sines"]["ordered"] = np.arange(1, 201)[None, :, None] / np.array([10.0, 20.0, 100.0])
    np.testing.assert_allclose(numbers.later("ordered")(runs, config), 2)
