"""The break-even point: where it lies on made-up paths, and claims that can fail."""

import jax
import numpy as np

from experiments import break_even_point as experiment
from experiments.break_even_point.network import network


def made_up(level):
    """tr K rises linearly to a level; the predictions move away at a constant speed."""
    return {
        "trace_K": level * np.linspace(0, 1, 41)[None],
        "accuracy": np.zeros((1, 41)),
        "predictions": np.arange(41.0)[None, :, None, None] * np.ones((1, 1, 3, 2)),
    }


def test_the_break_even_point_is_where_the_slow_path_passes_the_fast_ones_largest():
    slow, fast = made_up(2.0), made_up(1.0)
    # The fast path's smoothed end is a little below its level of 1; the slow one is there halfway.
    assert experiment.break_even(slow, fast)[0] in (19, 20)
    assert experiment.break_even(fast, slow) == [None]
    stays = fast | {"predictions": np.zeros((1, 41, 3, 2))}
    # Distances 0..40 from a path that stays: mean of the second half over that of the first.
    ratio = experiment.divergence(slow, stays)[0]
    assert 2.5 < ratio < 3.5


def test_smoothing_removes_a_spike_and_keeps_a_line():
    line = np.arange(30.0)
    spiked = line.copy()
    spiked[15] = 1000
    # Next to the spike the medians are those of eight numbers and a larger one: half a step more.
    np.testing.assert_allclose(experiment.smooth(spiked)[10:20], line[10:20], atol=1)


def test_batch_norm_makes_the_network_blind_to_the_scale_of_its_inputs_and_weights():
    net = network(3, 4, 1.0, True)
    params = net.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (20, 3))
    logits = net(params, inputs)
    # float32, and epsilon = 1e-5 beside variances of about 1
    np.testing.assert_allclose(net(params, 3 * inputs + 1), logits, atol=1e-4)
    tree = net.unravel(params)
    tree["layer_1"]["kernel"] *= 5
    scaled = jax.flatten_util.ravel_pytree(tree)[0]
    np.testing.assert_allclose(net(scaled, inputs), logits, atol=1e-4)
