"""The steps taken at once are those taken one by one, and the claims can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import epoch_risk as experiment
from experiments.epoch_risk import linear, network


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The steps are the same at any optimisation of the programs."""


@pytest.fixture
def problem():
    scales = np.array([1.0, 0.7, 0.3])
    return linear.Problem(scales, np.array([0.5, -1.0, 2.0]), 8, 0.6)


def test_all_steps_at_once_are_the_steps_one_by_one(problem):
    steps, times = np.array([0.1, 0.3, 0.2]), np.array([1, 2, 7])
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((8, 3)) * problem.scales
    targets = (inputs @ problem.theta)[:, None] + 0.6 * rng.standard_normal((8, 4))
    theta, expected = np.zeros((3, 4)), []
    for _ in range(7):
        theta = theta - steps[:, None] * inputs.T @ (inputs @ theta - targets) / 8
        off = theta - problem.theta[:, None]
        expected.append(np.square(problem.scales[:, None] * off).sum(0).mean())
    found = linear.simulated(problem, steps, times.astype(float), 1, 4, 5)
    np.testing.assert_allclose(found, np.array(expected)[times - 1], rtol=1e-10)


def test_the_formula_is_the_mean_of_many_examples(problem):
    many = problem._replace(samples=4000, noise=15.0)
    steps, times = np.array([0.1, 0.3, 0.2]), np.array([1.0, 20.0, 300.0])
    found = linear.simulated(many, steps, times, 10, 400, 0)
    # The mean of 4,000 sums of three squares, and three examples in 4,000.
    error = 5 * np.sqrt(2 / 3 / 4000) + 0.01
    np.testing.assert_allclose(found, linear.formula(many, steps, times), rtol=error)


def test_the_formula_by_hand():
    one = linear.Problem(np.array([0.5]), np.array([3.0]), 50, 2.0)
    found = linear.formula(one, np.array([0.4]), np.array([0.0, 2.0, 1e4]))
    left = (1 - 0.4 * 0.25) ** 2
    expected = [0.25 * 9, 0.25 * 9 * left**2 + 4 / 50 * (1 - left) ** 2, 4 / 50]
    np.testing.assert_allclose(found, expected)


def test_extrema_of_a_parabola_are_exact():
    times = np.geomspace(1, 1000, 30)
    log = np.log(times)
    minima, maxima = linear.extrema(times, (log - 2.0) ** 2)
    assert minima == pytest.approx([np.exp(2.0)])
    assert not maxima
    assert linear.extrema(times, -((log - 3.0) ** 2))[1] == pytest.approx([np.exp(3.0)])
    assert linear.extrema(times, log) == ([], [])


def test_the_network_takes_gradient_steps_with_a_size_for_each_layer():
    rates, seed = (1e-4, 3e-4), 2
    found = network.risks(4, rates, (1, 3), seed)
    rng = np.random.default_rng([seed, 4])
    theta = rng.standard_normal(50)
    inputs = rng.standard_normal((1100, 50)) * np.geomspace(1, 4, 50)
    x, y = jnp.asarray(inputs, jnp.float32), jnp.asarray(inputs @ theta, jnp.float32)

    def output(p, x):
        hidden = jnp.maximum(x @ p["first"]["kernel"] + p["first"]["bias"], 0)
        return hidden @ p["second"]["kernel"] + p["second"]["bias"]

    params, expected = network.init(jax.random.key(seed), 4), []
    for _ in range(3):
        g = jax.grad(lambda p: ((output(p, x[:100]) - y[:100]) ** 2).sum())(params)
        params = {
            layer: jax.tree.map(lambda a, b, r=rate: a - r * b, params[layer], g[layer])
            for layer, rate in zip(("first", "second"), rates, strict=True)
        }
        expected.append(float(abs(output(params, x[100:]) - y[100:]).mean()))
    np.testing.assert_allclose(found, [expected[0], expected[2]], rtol=1e-4)


def test_the_first_weights():
    params = network.init(jax.random.key(0), 20_000)
    kernel, second = params["first"]["kernel"], params["second"]["kernel"]
    assert float(kernel.std()) == pytest.approx((3 * 50) ** -0.5, rel=0.01)
    assert float(abs(second).max()) == pytest.approx(0.01 * 20_000**-0.5, rel=0.01)
    assert float(abs(params["first"]["bias"]).max()) == pytest.approx(50**-0.5, rel=0.01)


def test_the_models_of_the_configuration():
    config = experiment.Config()
    model = experiment.problem(config)
    shares = np.square(model.scales * model.theta)
    assert shares[:100].sum() == pytest.approx(0.5)
    assert shares[100:].sum() == pytest.approx(0.6)
    rates = {arm: experiment.step_sizes(config, arm) * model.scales**2 for arm in experiment.ARMS}
    np.testing.assert_allclose(rates["scaled"], 0.05)
    np.testing.assert_allclose(rates["equal"][[0, -1]], [0.05, 0.05 * 0.05**2])
    np.testing.assert_allclose(rates["opposite"][[0, -1]], [0.05, 0.05 * 0.05**4])


def _verdicts(*, factor=1.0, later=1.0, arms=None, network_gain=0.95):
    """Runs that follow the formula but for a factor, a shift in time, or exchanged arms."""
    config = experiment.Config(seeds=3)
    spread = np.array([0.999, 1.0, 1.001])[:, None]
    arms = {arm: arm for arm in experiment.ARMS} | (arms or {})
    model, t = experiment.problem(config), experiment.times(config)
    runs = {
        arm: {
            "risk": factor
            * spread
            * linear.formula(model, experiment.step_sizes(config, of), t / later)
        }
        for arm, of in arms.items()
    }
    curve = np.linspace(9, 5, 20) * spread
    runs["network"] = {"equal": curve, "two": network_gain * curve, "small": 1.5 * curve}
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def _failing(**changes):
    return {name for name, verdict in _verdicts(**changes).items() if verdict != "reproduced"}


def test_verdicts_on_made_up_runs():
    assert not _failing()
    follows = {"equal-follows-the-formula", "scaled-follows-the-formula"}
    assert _failing(factor=1.04) == _failing(factor=0.96) == follows
    epochs = {"epoch-of-first-minimum", "epoch-of-peak"}
    assert _failing(later=1.1) >= epochs
    assert _failing(later=0.9) >= epochs
    never = _failing(arms={"equal": "opposite"})
    assert {"rises-and-falls-again", "second-descent", "equal-follows-the-formula"} <= never
    assert {"scaled-has-no-peak", "scaled-is-better"} <= _failing(arms={"scaled": "equal"})
    assert _failing(network_gain=1.1) == {"network-is-better"}


def test_numbers_by_hand():
    risk = np.array([[5.0, 4.0, 6.0, 7.0, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    runs = {"equal": {"risk": risk}}
    np.testing.assert_allclose(experiment.first_minimum(risk)[0], 4)
    np.testing.assert_allclose(experiment.peak(risk), [7, 1])
    found = experiment.rise_and_fall("equal")(runs, None)
    np.testing.assert_allclose(found, [7 / 4, 1 / 5])
    np.testing.assert_allclose(experiment.falls_again("equal")(runs, None), [7 / 3, 1])
    np.testing.assert_allclose(experiment.end("equal")(runs, None)[0], 3 / 4)
