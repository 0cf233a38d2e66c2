"""The measurements of a state against the dense matrices of a network small enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from experiments.lib.data.images import DataConfig, load_data
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.training.curvature import Curvature, CurvatureConfig

CONFIG = CurvatureConfig(
    examples=40, top=3, max_steps=60, trace_rtol=0.05, density_probes=2, density_steps=20,
    line_points=5, line_length=0.04,
)  # fmt: skip


@pytest.fixture(scope="module")
def problem(data_dir):
    data = load_data(DataConfig(label_noise=0.2, train_size=64, normalize="channel"))
    return data, make_model(ModelConfig(name="mlp", width=2, depth=1, activation="tanh"), 10)


@pytest.fixture(scope="module")
def measured(problem):
    """A network of 160 parameters, its measurements, and its dense matrices in float64."""
    data, model = problem
    curvature = Curvature(model, "cross_entropy", data, CONFIG)
    params, state = model.init(jax.random.key(0), jnp.asarray(data.train.arrays(1).inputs))
    numbers = curvature.everything(params, state)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        inputs, targets = (jnp.asarray(np.asarray(a)) for a in curvature.batch)
        inputs = inputs.astype(jnp.float64)
        flat, unravel = jax.flatten_util.ravel_pytree(wide)
        loss = curvature.output_loss
        outputs_fn = lambda w: model.model_fn(unravel(w), inputs, state)  # noqa: E731
        losses_fn = lambda w: loss(outputs_fn(w), targets)  # noqa: E731
        dense = {
            "hessian": jax.hessian(lambda w: losses_fn(w).mean())(flat),
            "covariance": jnp.cov(jax.jacobian(losses_fn)(flat).T, bias=True),
            "fisher": _fisher(jax.jacobian(outputs_fn)(flat), jax.nn.softmax(outputs_fn(flat))),
        }
        dense = {name: np.asarray(matrix) for name, matrix in dense.items()}
        losses = np.asarray(losses_fn(flat))
    return curvature, (params, state), numbers, dense, losses


def _fisher(jacobian, p):
    middle = jnp.eye(10) * p[:, None] - p[:, :, None] * p[:, None, :]
    return jnp.einsum("nip,nij,njq->pq", jacobian, middle, jacobian) / len(p)


def test_eigenvalues_lie_within_their_residuals(measured):
    *_, numbers, dense, _ = measured
    spectrum = np.linalg.eigvalsh(dense["hessian"])
    scale = np.abs(spectrum).max()
    for end, expected in (("top", spectrum[::-1][:3]), ("bottom", spectrum[:2][::-1])):
        pairs = numbers["hessian"][end]
        # The residual bounds the error; products in float32 add some 1e-6 of the largest value.
        allowed = np.array(pairs["residual_norms"]) + 1e-5 * scale
        assert np.all(np.abs(pairs["values"] - expected) <= allowed)
        assert "vectors" not in pairs
    top = numbers["covariance"]["top"]
    largest = np.linalg.eigvalsh(dense["covariance"])[-1]
    assert abs(top["values"][0] - largest) <= top["residual_norms"][0] + 1e-5 * largest


@pytest.mark.parametrize("matrix", ["hessian", "covariance", "fisher"])
def test_traces_lie_within_their_errors(measured, matrix):
    *_, numbers, dense, _ = measured
    estimate, truth = numbers[matrix]["trace"], np.trace(dense[matrix])
    # One draw of a fixed key: five standard errors, and float32 products.
    allowed = 5 * estimate["standard_error"] + 1e-4 * np.abs(truth)
    assert abs(estimate["value"] - truth) <= allowed
    assert estimate["standard_error"] <= 0.2 * abs(truth)


def test_the_density_is_that_of_the_spectrum(measured):
    *_, numbers, dense, _ = measured
    density = numbers["density"]
    weights, atoms = np.array(density["weights"]), np.array(density["atoms"])
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    mean = np.trace(dense["hessian"]) / len(dense["hessian"])
    spread = np.sqrt(np.mean(np.linalg.eigvalsh(dense["hessian"]) ** 2))
    # The first moment, from two probes.
    assert weights @ atoms == pytest.approx(mean, abs=0.3 * spread)


def test_lines_pass_through_the_state_and_bend_as_the_hessian_says(measured):
    *_, numbers, dense, losses = measured
    lines = numbers["lines"]
    assert set(lines) == {"top_eigenvector", "random"}
    for line in lines.values():
        assert line["positions"][2] == 0
        assert line["losses"][2] == pytest.approx(losses.mean(), rel=1e-5)
    top = lines["top_eigenvector"]
    assert top["positions"] == pytest.approx([-0.04, -0.02, 0, 0.02, 0.04])
    left, here, right = (top["losses"][i] for i in (1, 2, 3))
    assert right >= left  # uphill to the right
    # The second difference: a step of 0.02 is long for the fourth derivative, short for float32.
    assert (left - 2 * here + right) / 0.02**2 == pytest.approx(
        np.linalg.eigvalsh(dense["hessian"])[-1], rel=0.05
    )


def test_the_rest_of_the_numbers(measured):
    curvature, (params, state), numbers, dense, losses = measured
    assert numbers["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert numbers["examples"] == 40
    assert numbers["parameters"] == flatjax._trees.size(params) == len(dense["hessian"])
    short = curvature.numbers(params, state)
    assert short["hessian"]["top"]["values"] == pytest.approx(
        numbers["hessian"]["top"]["values"], rel=1e-5
    )
    assert set(numbers) - set(short) == {"density", "lines"}
    assert short == curvature.numbers(params, state)  # the state alone decides


def test_squared_error_is_measured_against_one_hot_targets(problem):
    data, model = problem
    curvature = Curvature(model, "squared_error", data, CONFIG)
    inputs, targets = curvature.batch
    params, state = model.init(jax.random.key(0), inputs[:1])
    outputs = model.model_fn(params, inputs, state)
    expected = 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)
    assert np.array_equal(targets.argmax(1), data.train.arrays(40).targets)
    np.testing.assert_allclose(curvature.losses_fn(params, curvature.batch, state), expected, 1e-6)


def test_bad_options():
    with pytest.raises(ValueError, match="examples must be at least 1"):
        CurvatureConfig(examples=0)
