"""Networks by their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets.architecture import Architecture, network


@pytest.mark.parametrize("name", ["mlp", "s2cnn-2"])
def test_over_runs_is_each_run_by_itself(name):
    architecture = Architecture(network=name, hidden=(3,))
    model = network(architecture)
    shape = (2, 5, 16) if architecture.flat else (2, 5, 4, 4, 1)
    inputs = jnp.asarray(np.random.RandomState(0).randn(*shape), jnp.float32)
    params = jax.vmap(lambda key: model.init(key, inputs[0])[0])(
        jax.random.split(jax.random.key(0))
    )

    def logits(params, inputs):
        return {"logits": model.apply(params, {}, inputs, train=False)[0]}

    found = jax.jit(architecture.over_runs(logits))(params, inputs)["logits"]
    for i in range(2):
        alone = logits(jax.tree.map(lambda a, i=i: a[i], params), inputs[i])["logits"]
        # Float32 sums of some ten terms, in another order.
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)
