"""Losses, modes and traces are those of least squares, SGLD samples them, and claims can fail."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import typical_sample as experiment
from experiments.lib.runs.errors import BadNetwork
from experiments.typical_sample import gaussian, parts

EXAMPLES, WEIGHTS, SIGMA = 9, 4, 0.5


def _lists(seed=0, examples=EXAMPLES, weights=WEIGHTS):
    """Two data sets with their inputs and targets, as `gaussian.draw` draws them."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((2, examples, weights)) / weights**0.5
    teacher = rng.standard_normal((2, weights))
    targets = (inputs @ teacher[..., None])[..., 0] + SIGMA * rng.standard_normal((2, examples))
    return inputs, teacher, targets


@pytest.fixture
def data(x64):
    del x64
    return gaussian.draw(np.random.default_rng(0), 2, EXAMPLES, WEIGHTS, SIGMA)


def test_the_losses_are_those_of_the_examples(data):
    inputs, teacher, targets = _lists()
    w = np.random.default_rng(5).standard_normal((2, WEIGHTS))
    train = ((np.einsum("kni,ki->kn", inputs, w) - targets) ** 2).mean(1) / 2
    # Of a fresh x ~ N(0, 1 / d).
    test = (SIGMA**2 + ((w - teacher) ** 2).sum(1) / WEIGHTS) / 2
    found = gaussian.measured(data, w)
    np.testing.assert_allclose(found, [train, test, (w**2).sum(1) / 2], rtol=1e-10)


@pytest.mark.parametrize("precision", [0.0, 0.3])
def test_the_mode_and_the_traces_are_those_of_dense_matrices(data, precision):
    whole = data.hessian + precision * np.eye(WEIGHTS)
    mode = gaussian.mode(data, precision)
    np.testing.assert_allclose(np.einsum("kij,kj->ki", whole, mode), data.slope, rtol=1e-8)
    gradient = jax.grad(lambda w: data.train_loss(w).sum() + precision * (w**2).sum() / 2)(mode)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    effective, inverse = gaussian.traces(data, precision)
    each = np.linalg.inv(whole)
    np.testing.assert_allclose(effective, np.trace(data.hessian @ each, axis1=1, axis2=2))
    np.testing.assert_allclose(inverse, np.trace(each, axis1=1, axis2=2) / WEIGHTS)


def test_the_minimum_with_many_weights_is_the_one_of_least_norm():
    inputs, _, targets = _lists(1, 4, 7)
    data = gaussian.draw(np.random.default_rng(1), 2, 4, 7, SIGMA)
    expected = [np.linalg.pinv(x) @ y for x, y in zip(inputs, targets, strict=True)]
    np.testing.assert_allclose(gaussian.mode(data, 0.0), expected, rtol=1e-8)


def test_data_sets_one_after_the_other(data):
    both = gaussian.joined([data, data])
    assert both.floor == data.floor == SIGMA**2 / 2
    np.testing.assert_array_equal(both.slope, np.concatenate([data.slope, data.slope]))


def test_the_mean_gaps_are_those_of_many_data_sets():
    data = gaussian.draw(np.random.default_rng(2), 20_000, 30, 6, SIGMA)
    train, test, _ = gaussian.measured(data, gaussian.mode(data, 0.0))
    gap = np.asarray(test - train, float)
    close = 5 / len(gap) ** 0.5  # five standard errors
    assert gap.mean() == pytest.approx(gaussian.mode_gap(SIGMA, 30, 6), abs=close * gap.std())
    effective, inverse = gaussian.traces(data, 0.0)
    extra = 0.7 / 2 * (inverse - effective)
    assert extra.mean() == pytest.approx(gaussian.extra_gap(0.7, 30, 6), abs=close * extra.std())


def test_sgld_samples_what_its_step_says(x64):
    del x64
    data = gaussian.draw(np.random.default_rng(3), 400, 40, 3, SIGMA)
    precision, heat = 0.2, 0.05
    values = np.linalg.eigvalsh(data.hessian)
    rate = 0.2 / (values.max() + precision)
    found = gaussian.sample(
        data, 1, rate=rate, temperature=heat, precision=precision, warm_up=100, steps=300
    )
    mode = gaussian.mode(data, precision)
    more = np.asarray(found - gaussian.measured(data, mode), float)
    # A finite step adds to the variance of a direction 1 / (1 - eta h / 2).
    spread = heat / ((values + precision) * (1 - rate * (values + precision) / 2))
    expected = np.array(
        [(values * spread).sum(1) / 2, spread.sum(1) / 3 / 2, spread.sum(1) / 2]
    ).mean(1)
    # Five standard errors over data sets.
    close = 5 * more.std(1) / 20
    assert (abs(more.mean(1) - expected) < close).all()
    assert (close < 0.1 * expected)[0]


CONFIG = experiment.Config(seeds=3)


def _runs(heat=1.0, gap=1.0, minimum=1.0, typical=-1.0):
    """Runs of three seeds as theory has them, up to chance; with a temperature of its own."""
    chance = 1 + 1e-3 * np.array([-1.0, 0.0, 1.0])
    runs = {}
    for name, arm in parts.arms(CONFIG).items():
        d, own = arm.weights, arm.heat * heat
        effective = d / 2 if arm.precision else d
        wider = own / 2 * (3 * d - effective) if arm.precision else gap * gaussian.extra_gap(
            own, CONFIG.examples, d
        )  # fmt: skip
        norm = own / 2 * (d - effective) / (arm.precision or 1.0)
        excess = own / 2 * effective
        runs[name] = {
            "train": 0.3 + excess * chance, "test": 0.5 + (excess + wider) * chance,
            "norm": 1.0 + norm * chance, "mode_train": np.full(3, 0.3),
            "mode_test": np.full(3, 0.5), "mode_norm": np.full(3, 1.0),
            "effective": np.full(3, effective), "inverse": np.full(3, 3.0 * d),
            "over_minimum": (typical if arm.precision else 0.1) * chance,
        }  # fmt: skip
    expected = [gaussian.mode_gap(CONFIG.sigma, CONFIG.examples, d) for d in CONFIG.flat]
    runs["minima"] = {"gap": minimum * np.outer(chance, expected)}
    return runs


def _verdicts(runs):
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, CONFIG)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(_runs()).values()) == {"reproduced"}
    hot = _verdicts(_runs(heat=1.06))
    kept = {name for name, verdict in hot.items() if verdict == "reproduced"}
    assert kept == {"gap-of-the-minimum", "typical-beats-the-minimum"}
    wrong = _verdicts(_runs(heat=2.0, gap=1.2, minimum=1.1, typical=0.2))
    assert wrong.pop("equipartition") == "not reproduced"
    assert set(wrong.values()) == {"not reproduced"}


def test_gaps_and_potential_need_their_own_formulas():
    found = _verdicts(_runs(gap=1.1))
    assert found.pop("gap-of-a-typical-sample") == "not reproduced"
    assert set(found.values()) == {"reproduced"}
    runs = _runs()
    for name, own in runs.items():
        if name.startswith("posterior"):
            own["norm"] = own["norm"] + 0.2 * (own["norm"] - 1)
    found = _verdicts(runs)
    assert found.pop("equipartition-of-all-weights") == "not reproduced"
    assert set(found.values()) == {"reproduced"}


def test_the_arms():
    found = parts.arms(CONFIG)
    one = 0.25 / 100
    assert found["flat 25 at 10"] == (25, pytest.approx(10 * one), 0.0)
    assert found["posterior 200"] == (200, one, one)
    assert len(found) == len(CONFIG.flat) * len(CONFIG.heats) + len(CONFIG.posterior)


def test_samples_are_compared_on_their_own_data_sets(quick_compilation):
    del quick_compilation
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, posterior=(4,), posterior_steps=2000, posterior_sets=50)
    found = parts.samples(config, "posterior 4")
    arm = parts.arms(config)["posterior 4"]
    assert {a.shape for a in found.values()} == {(2,)}
    for s, seed in enumerate(config.seed_range()):
        data = gaussian.draw(np.random.default_rng([seed, 1]), 50, 12, 4, config.sigma)
        mode = gaussian.mode(data, arm.precision)
        expected = np.asarray(gaussian.measured(data, mode)).mean(1)
        own = [found[f"mode_{name}"][s] for name in ("train", "test", "norm")]
        np.testing.assert_allclose(own, expected, rtol=1e-5)  # single precision
        effective, inverse = gaussian.traces(data, arm.precision)
        np.testing.assert_allclose(found["effective"][s], effective.mean())
        np.testing.assert_allclose(found["inverse"][s], inverse.mean())
        typical = gaussian.measured(data, mode)[1] + arm.heat / 2 * inverse
        minimum = gaussian.measured(data, gaussian.mode(data, 0.0))[1]
        ratio = np.mean(np.log(typical / minimum))
        np.testing.assert_allclose(found["over_minimum"][s], ratio, atol=0.1)  # of one chain each
        assert abs(ratio) > 0.2
    # Some thousand independent samples of four weights.
    number = experiment.excess(found, arm, config) / (arm.heat / 2)
    np.testing.assert_allclose(number, found["effective"], rtol=0.15)


def test_gaps_along_the_width():
    config = dataclasses.replace(
        experiment.lab.presets["smoke"], curve=(3,), mode_sets=4000, posterior_sets=4000
    )
    expected = gaussian.mode_gap(config.sigma, 12, 3)
    np.testing.assert_allclose(parts.minima(config)["gap"], expected, rtol=0.1)
    curve = parts.along_widths(config)
    np.testing.assert_allclose(curve["minimum"], expected, rtol=0.1)
    assert (curve["mode"] < curve["typical"]).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="1 among them"):
        experiment.Config(heats=(0.1,))
    config = experiment.Config(recipe=dataclasses.replace(CONFIG.recipe, network="s2cnn-4"))
    with pytest.raises(BadNetwork, match="--network"):
        experiment.run(config, None)
