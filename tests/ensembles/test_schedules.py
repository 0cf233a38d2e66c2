"""The triangle, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatjax.ensembles import cyclic_schedule


def test_from_high_to_low_and_up_again():
    schedule = cyclic_schedule(0.2, 1.0, 4)
    expected = [1.0, 0.6, 0.2, 0.6] * 2 + [1.0]
    steps = np.arange(9)
    np.testing.assert_allclose([schedule(int(t)) for t in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), expected, rtol=1e-6)


def test_an_optimiser_takes_it(standard_promotion):
    tx = optax.sgd(cyclic_schedule(0.1, 0.3, 2))
    state = tx.init(jnp.float32(1))
    for rate in (0.3, 0.1, 0.3):
        update, state = tx.update(jnp.float32(1), state)
        np.testing.assert_allclose(update, -rate, rtol=1e-6)


def test_bad_arguments():
    for args, error, message in [
        ((-0.1, 1.0, 4), ValueError, "low must be at least 0"),
        ((0.2, 0.1, 4), ValueError, "high must be at least 0.2"),
        ((0.1, 0.2, 3), ValueError, "period must be even"),
        ((0.1, 0.2, 0), ValueError, "period must be at least 2"),
        ((0.1, 0.2, 4.0), TypeError, "period must be an integer"),
    ]:
        with pytest.raises(error, match=message):
            cyclic_schedule(*args)
