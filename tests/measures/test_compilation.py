"""New params, data, radii and keys of the same shapes compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import measures
from tests.compilations import count_compilations
from tests.measures import networks


def test_second_point_compiles_nothing():
    def everything(seed, radius):
        rng = np.random.default_rng(seed)
        matrix = networks.spd(4, seed)
        batch = {"H": jnp.asarray(matrix, jnp.float32), "g": jnp.zeros(4)}
        w, key = jnp.asarray(rng.normal(size=4), jnp.float32), jax.random.key(seed)
        over = (networks.quadratic, w, batch)
        return [
            measures.sam_sharpness(*over, rho=radius, ascent_steps=2, num_starts=2, key=key).value,
            measures.eps_sharpness(*over, epsilon=radius, ascent_steps=2).value,
            measures.average_sharpness(*over, sigma=radius, key=key, num_samples=2).value,
            measures.critical_sharpness(*over, update=-w, initial_step=radius).value,
            measures.pac_bayes_flatness(*over, increase=radius, key=key, num_samples=2).sigma,
        ]

    first = everything(0, 0.1)
    with count_compilations() as count:
        second = everything(1, 0.2)
    assert count.value == 0
    assert not np.allclose(first, second)
