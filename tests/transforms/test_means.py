"""Means over parts and devices, by weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.transforms import _means as means

PARTS = jnp.array([1.0, jnp.nan, 4.0])


def over_devices(weights):
    return jax.vmap(lambda a, w: means.average(a, "i", w), axis_name="i")(PARTS, weights)[0]


@pytest.mark.parametrize("mean", [lambda w: means.mean_of_stacked(PARTS, w), over_devices])
def test_parts_count_by_their_weights(mean):
    # (1 + 3 * 4) / 4, exact in float32; what has weight zero does not count, whatever it is.
    assert float(mean(jnp.array([1.0, 0.0, 3.0]))) == 3.25
    assert np.isnan(mean(jnp.zeros(3))), "of nothing there is no mean"


def test_half_precision_is_multiplied_in_float32():
    # With a share of 1/3 in float16 the summand would be 666, not the 666.5 that is nearest.
    share = means.shares(jnp.float16(1999), jnp.float32(1), jnp.float32(3))
    assert share.dtype == jnp.float16
    assert float(share) == 666.5


def test_without_weights_all_count_equally():
    doubled = jax.vmap(means.averaged(lambda w: 2 * w, "i"), axis_name="i")(jnp.array([1.0, 4.0]))
    np.testing.assert_array_equal(doubled, 5.0)
    assert means.mean_of_stacked(jnp.array([1, 4, 4], jnp.float16)).dtype == jnp.float16
