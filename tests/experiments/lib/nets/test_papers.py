"""The networks have the papers' numbers of parameters."""

import jax
import jax.numpy as jnp
import pytest

from experiments.lib.nets import named


@pytest.mark.parametrize(
    ("name", "side", "count", "batch_norm"),
    [
        ("SmallInception", 28, 1_649_402, True),  # Zhang et al. 2017, table 1
        # 9,217,728 weights of eight convolutions, 2,752 biases, and the last layer.
        ("VGG11", 32, 9_217_728 + 2_752 + 5130, False),
        # Seven 3 x 3 convolutions, two of 1 x 1, and a batch norm after each.
        (
            "AllCNN",
            32,
            9 * (3 * 96 + 96 * 96 + 96 * 192 + 4 * 192 * 192)
            + 192 * 192
            + 1920
            + 2 * (2 * 96 + 6 * 192 + 10),
            True,
        ),
        # Two convolutions, dense layers of 384, 192 and 10 units, and four batch norms.
        ("ShallowNet", 32, 4864 + 102_464 + 1_573_248 + 73_920 + 1930 + 2 * 704, True),
    ],
)
def test_their_parameters_are_as_many_as_in_the_papers(name, side, count, batch_norm):
    model = named.model(f"experiments.lib.nets.papers:{name}", 10)
    image = jnp.zeros((1, side, side, 3))
    params, state = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(a.size for a in jax.tree.leaves(params)) == count
    assert bool(state) == batch_norm
