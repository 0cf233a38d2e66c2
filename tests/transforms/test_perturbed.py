"""Several ascent steps, and the derivative of the perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import assert_close, one_update, unit

XENT = losses.softmax_cross_entropy


def test_several_ascent_steps(net, dense):
    params, batch = net
    epsilon = np.zeros_like(dense.w)
    for _ in range(3):
        epsilon = epsilon + 0.1 * unit(dense.grad(dense.w + epsilon))
        # Every step is a third of the radius: the ball is never left, nothing to project.
        assert np.linalg.norm(epsilon) <= 0.3
    out, _ = one_update(ft.sam(0.3, ascent_steps=3), params, batch)
    assert_close(out, dense.grad(dense.w + epsilon))


SECOND_ORDER = [
    {},
    {"normalize": False},
    {"ascent_steps": 2, "adaptive": True, "p": 3.0},
    pytest.param({"p": 1.5}, marks=pytest.mark.slow),
    pytest.param({"adaptive": True}, marks=pytest.mark.slow),
    pytest.param({"ascent_steps": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", SECOND_ORDER, ids=str)
def test_second_order_is_the_gradient_of_the_perturbed_loss(net, dense, options):
    params, batch = net
    value = lambda w: dense._value(w, batch)  # noqa: E731
    p, steps = options.get("p", 2.0), options.get("ascent_steps", 1)
    q = p / (p - 1)

    def perturbed_loss(w):
        epsilon, scale = 0.0, jnp.abs(w) + 0.01 if options.get("adaptive") else 1.0
        for _ in range(steps):
            g = scale * jax.grad(value)(w + epsilon)
            direction = jnp.sign(g) * jnp.abs(g) ** (q - 1)
            if options.get("normalize", True):
                direction = direction / (jnp.abs(g) ** q).sum() ** (1 / p)
            epsilon = epsilon + 0.2 / steps * scale * direction
        return value(w + epsilon)

    expected = jax.jit(jax.grad(perturbed_loss))(jnp.asarray(dense.w))
    ball = {name: value for name, value in options.items() if name != "ascent_steps"}
    tx = ft.sam(0.2, ascent=ft.Ascent(**ball), ascent_steps=steps, second_order=True)
    out, _ = one_update(tx, params, batch)
    assert_close(out, expected, rtol=1e-9, atol=1e-11)
