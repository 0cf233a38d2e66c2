"""Keskar's sharpness against closed forms, SciPy's L-BFGS-B, and its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from flatjax.measures import eps_sharpness, sam_sharpness
from flatjax.measures._eps_sharpness import random_subspace
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

EPS = 0.05


def separable(w, curvature):
    return 0.5 * (curvature * w**2).sum()


def test_separable_quadratic_in_closed_form():
    w = np.array([1.0, -2.0, 0.0, 0.5])
    curvature = np.array([3.0, 0.1, 2.0, 1.0])
    loss = 0.5 * (curvature * w**2).sum()
    box = EPS * (np.abs(w) + 1)
    best = 0.5 * (curvature * (np.abs(w) + box) ** 2).sum()
    # The zero weight has no gradient at the start: one more step finds its corner.
    result = eps_sharpness(
        separable, jnp.asarray(w), jnp.asarray(curvature), epsilon=EPS, num_starts=2,
        key=jax.random.key(0),
    )  # fmt: skip
    np.testing.assert_allclose(result.value, 100 * (best - loss) / (1 + loss), rtol=1e-13)
    np.testing.assert_allclose(np.abs(result.perturbation), box, rtol=1e-13)
    assert result.num_evaluations == 21


def test_is_the_adaptive_sam_sharpness_of_the_box():
    params, batch = networks.relu_params(), networks.data()
    result = eps_sharpness(networks.relu_loss, params, batch, epsilon=EPS, ascent_steps=4)
    sam = sam_sharpness(
        networks.relu_loss,
        params,
        batch,
        rho=EPS,
        p=np.inf,
        adaptive=True,
        offset=1.0,
        ascent_steps=4,
    )
    expected = 100 * sam.value / (1 + sam.loss)
    np.testing.assert_allclose(result.value, expected, rtol=1e-12)  # the same arithmetic


def test_reaches_what_the_papers_optimiser_reaches():
    params, batch = networks.relu_params(), networks.data()
    flat, unravel = ravel_pytree(params)
    box = EPS * (np.abs(flat) + 1)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda z: -networks.relu_loss(unravel(flat + z), batch).mean())
    )
    bounds = list(zip(-box, box, strict=True))
    found = scipy.optimize.minimize(
        lambda z: [np.asarray(a) for a in value_and_grad(z)],
        np.zeros(flat.size), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 10},
    )  # fmt: skip
    result = eps_sharpness(networks.relu_loss, params, batch, epsilon=EPS, ascent_steps=10)
    # Both are lower bounds of one maximum; ours is not to fall behind by more than a per cent.
    assert float(result.max_loss) > 0.99 * -found.fun
    inside = np.abs(np.concatenate([np.ravel(z) for z in result.perturbation])) <= box * (1 + 1e-12)
    assert inside.all()


@pytest.mark.parametrize("gradient", ["autodiff", "forward"])
def test_subspace_maximum_is_at_a_vertex(gradient):
    H, w = networks.spd(8, condition=3.0), np.linspace(1.0, 2.0, 8)
    batch = {"H": jnp.asarray(H), "g": jnp.zeros(8)}
    key = jax.random.key(3)
    result = eps_sharpness(
        networks.quadratic, jnp.asarray(w), batch, epsilon=EPS, subspace=3, key=key,
        gradient=gradient, ascent_steps=6,
    )  # fmt: skip
    # The definition, by hand, with the same random directions.
    columns = np.asarray(random_subspace(key, jnp.asarray(w), 3, EPS).directions).T
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1.0, rtol=1e-14)
    box = EPS * (np.abs(np.linalg.pinv(columns) @ w) + 1)
    corners = [columns @ (box * s) for s in itertools.product([-1, 1], repeat=3)]
    best = max(0.5 * (w + z) @ H @ (w + z) for z in corners)
    loss = 0.5 * w @ H @ w
    # The pseudo-inverse by normal equations of nearly orthonormal columns.
    np.testing.assert_allclose(result.value, 100 * (best - loss) / (1 + loss), rtol=1e-11)
    assert result.num_evaluations == (7 if gradient == "autodiff" else 28)


def test_ignores_permutations_and_signs():
    w = np.array([1.0, -2.0, 0.3, 0.5])
    curvature = np.array([3.0, 0.1, 2.0, 1.0])
    order, signs = np.array([2, 0, 3, 1]), np.array([1.0, -1.0, -1.0, 1.0])
    values = [
        float(eps_sharpness(separable, jnp.asarray(a), jnp.asarray(c), epsilon=EPS).value)
        for a, c in ((w, curvature), (signs * w[order], curvature[order]))
    ]
    np.testing.assert_allclose(*values, rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"gradient": "reverse"}, "gradient must be one of"),
        ({"gradient": "forward"}, "give subspace="),
        ({"subspace": 2}, "needs key="),
        ({"subspace": 9, "key": 0}, "does not fit into 4 params"),
        ({"num_starts": 3}, "pass key="),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        eps_sharpness(separable, jnp.ones(4), jnp.ones(4), **options)
