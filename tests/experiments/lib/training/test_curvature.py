"""The measurements of a state against the dense matrices of a network small enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.data.small import small_data
from experiments.lib.training import curvature, recipes
from experiments.lib.training.curvature import NUMBERS, Curvature, CurvatureConfig
from flatjax import linalg

CONFIG = CurvatureConfig(
    examples=40, top=3, max_steps=60, trace_rtol=0.05, density_probes=2, density_steps=20,
    line_points=5, line_length=0.04,
)  # fmt: skip
RECIPE = recipes.Recipe(hidden=(2,))
DATA = small_data("digits", seed=0, train_size=64, label_noise=0.2)


@pytest.fixture(scope="module")
def measured():
    """A network of 160 parameters, its measurements, and its dense matrices in float64."""
    instrument = Curvature(RECIPE, DATA, CONFIG)
    params, state = recipes.network(RECIPE).init(jax.random.key(0), DATA.inputs[:1])
    numbers = instrument.everything(params, state)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        inputs, targets = (jnp.asarray(np.asarray(a)) for a in instrument.batch)
        inputs = inputs.astype(jnp.float64)
        flat, unravel = jax.flatten_util.ravel_pytree(wide)
        loss = instrument.output_loss
        outputs_fn = lambda w: instrument.model_fn(unravel(w), inputs, state)  # noqa: E731
        losses_fn = lambda w: loss(outputs_fn(w), targets)  # noqa: E731
        dense = {
            "hessian": jax.hessian(lambda w: losses_fn(w).mean())(flat),
            "covariance": jnp.cov(jax.jacobian(losses_fn)(flat).T, bias=True),
            "fisher": _fisher(jax.jacobian(outputs_fn)(flat), jax.nn.softmax(outputs_fn(flat))),
        }
        dense = {name: np.asarray(matrix) for name, matrix in dense.items()}
        losses = np.asarray(losses_fn(flat))
    return instrument, (params, state), numbers, dense, losses


def _fisher(jacobian, p):
    middle = jnp.eye(10) * p[:, None] - p[:, :, None] * p[:, None, :]
    return jnp.einsum("nip,nij,njq->pq", jacobian, middle, jacobian) / len(p)


def test_eigenvalues_lie_within_their_residuals(measured):
    *_, numbers, dense, _ = measured
    spectrum = np.linalg.eigvalsh(dense["hessian"])
    scale = np.abs(spectrum).max()
    for end, expected in (("top", spectrum[::-1][:3]), ("bottom", spectrum[:2][::-1])):
        values, residuals = numbers[end].T
        # The residual bounds the error; products in float32 add some 1e-6 of the largest value.
        assert np.all(np.abs(values - expected) <= residuals + 1e-5 * scale)
    value, residual = numbers["lambda_K"]
    largest = np.linalg.eigvalsh(dense["covariance"])[-1]
    assert abs(value - largest) <= residual + 1e-5 * largest


@pytest.mark.parametrize(
    ("name", "matrix"),
    [("trace", "hessian"), ("trace_K", "covariance"), ("trace_fisher", "fisher")],
)
def test_traces_lie_within_their_errors(measured, name, matrix):
    *_, numbers, dense, _ = measured
    (value, error), truth = numbers[name], np.trace(dense[matrix])
    # One draw of a fixed key: five standard errors, and float32 products.
    assert abs(value - truth) <= 5 * error + 1e-4 * np.abs(truth)
    assert 0 < error <= 0.2 * abs(truth)


def test_the_density_is_that_of_the_spectrum(measured):
    *_, numbers, dense, _ = measured
    grid, density, low, high = numbers["density"]
    assert np.all((low <= density) & (density <= high))
    # Trapezia over Gaussians at least two steps wide, whose tails the grid cuts off.
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.01)
    mean = np.trace(dense["hessian"]) / len(dense["hessian"])
    spread = np.sqrt(np.mean(np.linalg.eigvalsh(dense["hessian"]) ** 2))
    # The first moment, from two probes.
    assert np.trapezoid(grid * density, grid) == pytest.approx(mean, abs=0.3 * spread)


def test_lines_pass_through_the_state_and_bend_as_the_hessian_says(measured):
    *_, numbers, dense, losses = measured
    for positions, values in (numbers["top_eigenvector"], numbers["random"]):
        assert positions[2] == 0
        assert values[2] == pytest.approx(losses.mean(), rel=1e-5)
    positions, (_, left, here, right, _) = numbers["top_eigenvector"]
    assert positions == pytest.approx([-0.04, -0.02, 0, 0.02, 0.04])
    assert right >= left  # uphill to the right
    # The second difference: a step of 0.02 is long for the fourth derivative, short for float32.
    assert (left - 2 * here + right) / 0.02**2 == pytest.approx(
        np.linalg.eigvalsh(dense["hessian"])[-1], rel=0.05
    )


def test_the_state_alone_decides(measured):
    instrument, state, numbers, *_ = measured
    short, again = instrument.numbers(*state), instrument.numbers(*state)
    assert tuple(short) == NUMBERS
    assert set(numbers) == {*NUMBERS, "density", "top_eigenvector", "random"}
    np.testing.assert_allclose(short["top"][:, 0], numbers["top"][:, 0], rtol=1e-5)
    for name, values in short.items():
        np.testing.assert_array_equal(values, again[name])


def test_of_a_value_below_the_noise_at_least_the_noise_is_its_error():
    pairs = linalg.Eigenpairs(
        values=jnp.array([2.0, 1e-9]),
        vectors=None,
        residual_norms=jnp.array([1e-3, 1e-12]),
        converged=jnp.array([True, True]),
        resolved=jnp.array([True, False]),
        num_products=9,
        noise_floor=jnp.float32(1e-5),
    )
    np.testing.assert_allclose(curvature._pairs(pairs), [[2, 1e-3], [1e-9, 1e-5]], rtol=1e-6)


def test_squared_error_is_measured_against_one_hot_targets():
    recipe = recipes.Recipe(hidden=(2,), loss="squared_error")
    found = Curvature(recipe, DATA, CONFIG)
    inputs, targets = found.batch
    params, state = recipes.network(recipe).init(jax.random.key(0), inputs[:1])
    outputs = found.model_fn(params, inputs, state)
    expected = 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)
    assert np.array_equal(targets.argmax(1), DATA.targets[:40])
    np.testing.assert_allclose(found.losses_fn(params, found.batch, state), expected, 1e-6)


def test_bad_options():
    with pytest.raises(ValueError, match="examples must be at least 1"):
        CurvatureConfig(examples=0)
