"""SAM sharpness against closed forms on quadratics, its definition, and its invariances."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from flatjax.measures import sam_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

DIM = 6
H = networks.spd(DIM)
G = np.random.default_rng(5).normal(size=DIM)


@pytest.fixture
def batch():
    return {"H": jnp.asarray(H), "g": jnp.asarray(G)}


def rise(e):
    return 0.5 * e @ H @ e + G @ e


def measured(batch, **kwargs):
    return sam_sharpness(networks.quadratic, jnp.zeros(DIM), batch, **kwargs)


def test_euclidean_maximum_is_the_trust_region_solution(batch):
    rho = 0.7
    values, vectors = np.linalg.eigh(H)
    g = vectors.T @ G
    # Stationary on the sphere with the multiplier above the spectrum: (mu - H) e = g, |e| = rho.
    length = lambda mu: np.linalg.norm(g / (mu - values)) - rho  # noqa: E731
    mu = scipy.optimize.brentq(length, values[-1] + 1e-9, values[-1] + 1e3, xtol=1e-14)
    best = rise(vectors @ (g / (mu - values)))
    result = measured(batch, rho=rho, ascent_steps=200)
    # Converged: a conditional gradient step is then a power-method step, linear in lambda_2/mu.
    np.testing.assert_allclose(result.value, best, rtol=1e-10)
    assert abs(float(result.gap)) < 1e-7  # first order in the angle, where the value is second


@pytest.mark.parametrize("p", [1.0, np.inf])
def test_polyhedral_maximum_is_at_a_vertex(batch, p):
    rho = 0.7
    if p == 1.0:
        vertices = rho * np.concatenate([np.eye(DIM), -np.eye(DIM)])
    else:
        vertices = rho * np.array(list(itertools.product([-1, 1], repeat=DIM)))
    best = max(rise(e) for e in vertices)
    result = measured(batch, rho=rho, p=p, ascent_steps=10, num_starts=8, key=jax.random.key(0))
    # A local search from eight starts; the value at a vertex is exact to rounding.
    np.testing.assert_allclose(result.value, best, rtol=1e-13)
    np.testing.assert_allclose(result.starts.max(), result.value)


@pytest.mark.parametrize("p", [1.5, 2.0, 4.0])
def test_first_step_is_sams_perturbation(batch, p):
    rho, q = 0.3, 1 / (1 - 1 / p)
    epsilon = rho * np.sign(G) * np.abs(G) ** (q - 1) / (np.abs(G) ** q).sum() ** (1 / p)
    result = measured(batch, rho=rho, p=p)
    assert result.num_gradients == 2
    # Rounding of a power and a root.
    np.testing.assert_allclose(result.perturbation, epsilon, rtol=1e-12)
    np.testing.assert_allclose(result.first_step, rise(epsilon), rtol=1e-12)
    np.testing.assert_allclose(result.value, result.first_step, rtol=1e-12)
    np.testing.assert_allclose(result.first_order, rho * (np.abs(G) ** q).sum() ** (1 / q))


def test_steps_never_lower_the_loss_and_stay_in_the_ball():
    params, batch = networks.relu_params(), networks.data()
    values, gaps = [], []
    for ascent_steps in (1, 2, 4, 8, 16):
        result = sam_sharpness(
            networks.relu_loss, params, batch, rho=0.5, p=3.0, ascent_steps=ascent_steps
        )
        flat = np.concatenate([np.ravel(a) for a in result.perturbation])
        assert (np.abs(flat) ** 3).sum() ** (1 / 3) <= 0.5 * (1 + 1e-12)
        moved = [w + e for w, e in zip(params, result.perturbation, strict=True)]
        again = networks.relu_loss(moved, batch).mean() - result.loss
        np.testing.assert_allclose(result.value, again, rtol=1e-10)
        values.append(float(result.value))
        gaps.append(float(result.gap))
    assert values == sorted(values)
    assert values[-1] > 1.02 * values[0]  # measured: 1.1
    assert gaps[-1] < 0.1 * gaps[0]


def test_critical_point_needs_a_random_start(batch):
    batch = {"H": batch["H"], "g": jnp.zeros(DIM)}
    assert float(measured(batch, rho=1.0, ascent_steps=5).value) == 0.0
    result = measured(batch, rho=1.0, ascent_steps=100, num_starts=2, key=jax.random.key(1))
    # The maximum is at the top eigenvector; 99 steps of the power method with ratio 0.63.
    np.testing.assert_allclose(result.value, 0.5 * np.linalg.eigvalsh(H)[-1], rtol=1e-10)


def test_adaptive_form_ignores_the_rescaling_of_nodes():
    params, batch = networks.relu_params(), networks.data()
    other = networks.rescaled(params)
    options = {"rho": 0.3, "ascent_steps": 3}
    adaptive = [
        float(
            sam_sharpness(networks.relu_loss, w, batch, adaptive=True, offset=0.0, **options).value
        )
        for w in (params, other)
    ]
    # Equal in exact arithmetic, step by step; scales up to 50 leave rounding of the network.
    np.testing.assert_allclose(adaptive[1], adaptive[0], rtol=1e-12)
    plain = [
        float(sam_sharpness(networks.relu_loss, w, batch, **options).value) for w in (params, other)
    ]
    assert abs(plain[1] / plain[0] - 1) > 0.5


def test_euclidean_form_ignores_rotations(batch):
    q = np.linalg.qr(np.random.default_rng(7).normal(size=(DIM, DIM)))[0]
    rotated = {"H": jnp.asarray(q.T @ H @ q), "g": jnp.asarray(q.T @ G)}
    values = [float(measured(b, rho=0.5, ascent_steps=4).value) for b in (batch, rotated)]
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_a_loss_that_overflows_is_stepped_back_from():
    def loss_fn(w, _):
        return jnp.exp(1000 * w).sum()

    result = sam_sharpness(loss_fn, jnp.zeros(1), None, rho=1.0, ascent_steps=6)
    assert np.isinf(result.first_step)
    assert np.isfinite(result.value)
    assert float(result.value) > 1e100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be above 0"),
        ({"p": 0.5}, "p must be at least 1"),
        ({"offset": -1.0}, "offset must be at least 0"),
        ({"ascent_steps": 0}, "ascent_steps must be at least 1"),
        ({"num_starts": 2}, "pass key="),
        ({"rho": float("nan")}, "rho must be finite"),
    ],
)
def test_bad_arguments(batch, options, message):
    with pytest.raises(ValueError, match=message):
        measured(batch, **options)


def test_traced_norm_is_an_error(batch):
    with pytest.raises(TypeError, match="p decides the program"):
        jax.jit(lambda p: measured(batch, p=p).value)(2.0)
