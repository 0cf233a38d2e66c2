"""New data, params, keys and scalars compile nothing."""

import jax
import jax.numpy as jnp
import pytest

import flatjax
from tests.compilations import count_compilations
from tests.models import NETWORKS, mlp
from tests.operators import references

WEIGHTS = jnp.arange(8.0)


def everything(kind, scale):
    """Build, multiply, linearise and combine an operator on data of this scale."""
    params, (x, y) = NETWORKS["mlp"].cast(jnp.float32)
    params = jax.tree.map(lambda a: jnp.float32(scale) * a, params)
    op = references.make(
        kind, mlp, params, (jnp.float32(scale) * x, y), weights=jnp.float32(scale) * WEIGHTS
    )
    kept = op.linearize()
    combined = scale * kept if kind == "hessian" else kept
    return [op @ params, kept @ params, combined @ params]


@pytest.mark.parametrize("kind", references.OPERATORS)
def test_new_values_compile_nothing(kind):
    first = everything(kind, 1.0)
    with count_compilations() as count:
        second = everything(kind, 0.5)
    assert count.value == 0
    biases = [products[1]["out"]["bias"] for products in (first, second)]
    assert not jnp.array_equal(*biases)  # it really was another operator


def test_a_new_key_and_new_arguments_compile_nothing():
    params, batch = NETWORKS["mlp"].cast(jnp.float32)

    def loss_fn(params, batch, key, scale):
        keep = jax.random.bernoulli(key, 0.5, batch[0].shape)
        dropped = jnp.where(keep, batch[0], jnp.zeros_like(batch[0]))
        return scale * flatjax.softmax_cross_entropy(mlp(params, dropped), batch[1])

    def product(seed):
        key, scale = jax.random.key(seed), jnp.float32(1 + seed)
        return flatjax.hessian(loss_fn, params, batch, key, scale) @ params

    first = product(0)
    with count_compilations() as count:
        second = product(1)
    assert count.value == 0
    assert not jnp.allclose(first["out"]["bias"], second["out"]["bias"])


def test_a_product_compiles_one_program_that_a_user_program_does_not_repeat():
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    op = references.make("ggn", mlp, params, batch, precision="float32")
    with count_compilations() as count:
        op @ params
    assert count.value == 1


def test_a_stream_compiles_one_program_a_shape():
    params, (x, y) = NETWORKS["mlp"].cast(jnp.float32)

    def product(apply, scale):
        batches = [(scale * x[i : i + 3], y[i : i + 3]) for i in (0, 3, 6)]  # 3, 3, 2
        make = lambda batch: references.make("hessian", apply, params, batch)  # noqa: E731
        return flatjax.over_batches(make, batches) @ params

    product(mlp, jnp.float32(1.0))  # slices and the like
    with count_compilations() as count:
        product(lambda params, x: 1.25 * mlp(params, x), jnp.float32(1.0))
        assert count.value == 2
        product(lambda params, x: 1.25 * mlp(params, x), jnp.float32(2.0))  # the same program
        assert count.value == 2
