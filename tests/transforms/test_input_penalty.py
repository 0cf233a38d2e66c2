"""The penalty on the gradient with respect to the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import Dense, assert_close, flat, model, one_update, per_example

XENT = losses.softmax_cross_entropy


def test_input_gradient_penalty(net, dense):
    params, batch = net

    def penalty(w, b):
        each = jax.vmap(jax.grad(lambda x, y: per_example(w, (x[None], y[None]))[0]))(*b)
        return jnp.sum(each**2) / len(b[1])

    reference = Dense(params, batch, penalty)
    tx = ft.input_gradient_penalty(model, losses.softmax_cross_entropy, coef=0.3, diagnostics=True)
    out, state = one_update(tx, params, batch)
    assert_close(out, dense.g + 0.3 * reference.grad(reference.w))
    assert float(state.penalty) == pytest.approx(float(reference.value(reference.w)), rel=1e-12)


def test_input_gradient_penalty_by_differences(net):
    params, batch = net
    exact, central, forward = (
        flat(
            one_update(
                ft.input_gradient_penalty(
                    model, losses.softmax_cross_entropy, coef=0.3, mode=mode, step=1e-3
                ),
                params,
                batch,
            )[0]
        )
        for mode in ("linearize", "central", "forward")
    )
    # Truncation of order step^2 and step.
    np.testing.assert_allclose(central, exact, atol=1e-6)
    np.testing.assert_allclose(forward, exact, atol=1e-3)
