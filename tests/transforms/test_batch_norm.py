"""Batch-norm statistics of averaged params."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flatjax.transforms as ft
from flatjax import losses

XENT = losses.softmax_cross_entropy


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))


def test_batch_statistics_of_averaged_params():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    variables = Normed().init(jax.random.key(0), x, False)
    params, stats = variables["params"], variables["batch_stats"]

    def update(params, stats, batch):
        variables = {"params": params, "batch_stats": stats}
        return Normed().apply(variables, batch, True, mutable=["batch_stats"])[1]["batch_stats"]

    batches = [x[:8], x[8:16], x[16:]]
    found = ft.reestimate_batch_statistics(update, params, stats, batches)["BatchNorm_0"]
    hidden = np.asarray(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    parts = [hidden[:8], hidden[8:16], hidden[16:]]
    weights = np.array([8, 8, 4]) / 20
    # Float32, and the decay of 0.9 is measured as 1 - (1 - 0.1): a few 1e-6.
    np.testing.assert_allclose(found["mean"], hidden.mean(axis=0), rtol=2e-5, atol=2e-6)
    variance = sum(w * p.var(axis=0) for w, p in zip(weights, parts, strict=True))
    np.testing.assert_allclose(found["var"], variance, rtol=2e-5)
