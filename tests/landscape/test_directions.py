"""Filter-normalised directions: norms filter by filter, invariance, errors."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flatjax.landscape import filter_normalize, filter_normalized_direction


@pytest.fixture
def params(key):
    k = jax.random.split(key, 3)
    return {
        "conv": jax.random.normal(k[0], (3, 3, 2, 5)),
        "dense": jax.random.normal(k[1], (7, 4)) * jnp.array([1.0, 10.0, 0.1, 0.0]),
        "bias": jax.random.normal(k[2], (4,)),
        "scale": jnp.asarray(2.0),
    }


def norms(leaf, axis):
    axes = tuple(i for i in range(leaf.ndim) if i != axis % leaf.ndim)
    return np.sqrt(np.sum(np.asarray(leaf, np.float64) ** 2, axes))


@pytest.mark.parametrize("axis", [-1, 0])
def test_every_filter_has_the_norm_of_the_params_filter(key, params, axis):
    direction = filter_normalized_direction(params, key=key, axis=axis)
    for name in ("conv", "dense"):
        # A few roundings of float32 in a sum of at most 45 squares and a quotient.
        np.testing.assert_allclose(
            norms(direction[name], axis), norms(params[name], axis), rtol=1e-6, atol=1e-12
        )


def test_biases_are_zero_or_of_the_leafs_norm(key, params):
    zeroed = filter_normalized_direction(params, key=key, axis=-1)
    scaled = filter_normalized_direction(params, key=key, axis=-1, biases="scale")
    assert not zeroed["bias"].any()
    assert zeroed["scale"] == 0
    np.testing.assert_allclose(
        jnp.linalg.norm(scaled["bias"]), jnp.linalg.norm(params["bias"]), rtol=1e-6
    )
    assert abs(scaled["scale"]) == 2.0
    np.testing.assert_array_equal(zeroed["conv"], scaled["conv"])


def test_the_length_of_the_given_direction_does_not_matter(key, params):
    direction = jax.tree.map(jnp.ones_like, params)
    longer = jax.tree.map(lambda a: 1000 * a, direction)
    got = filter_normalize(longer, params, axis=-1)
    # Both quotients round once or twice in float32.
    for a, b in zip(
        jax.tree.leaves(got),
        jax.tree.leaves(filter_normalize(direction, params, axis=-1)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_rescaled_layer_gives_a_rescaled_direction(key, params):
    """The curve of a network does not change when a layer is scaled and the next one divided."""
    scaled = {**params, "dense": 4.0 * params["dense"]}
    one, other = (filter_normalized_direction(p, key=key, axis=-1) for p in (params, scaled))
    np.testing.assert_allclose(other["dense"], 4.0 * one["dense"], rtol=1e-6)
    np.testing.assert_array_equal(other["conv"], one["conv"])


def test_zero_filters_stay_zero_and_finite(params):
    zero = jax.tree.map(jnp.zeros_like, params)
    got = filter_normalize(zero, params, axis=-1, biases="scale")
    assert all(not leaf.any() for leaf in jax.tree.leaves(got))
    assert not filter_normalize(jax.tree.map(jnp.ones_like, params), params, axis=-1)["dense"][
        :, 3
    ].any()


def test_directions_are_in_at_least_float32_and_keys_matter(key):
    params = {"a": jnp.ones((4, 4), jnp.bfloat16), "b": jnp.ones((4, 4), jnp.float32)}
    one = filter_normalized_direction(params, key=key, axis=-1)
    other = filter_normalized_direction(params, key=jax.random.fold_in(key, 1), axis=-1)
    assert {v.dtype for v in one.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(norms(one["a"], -1), 2.0, rtol=1e-6)  # not rounded to 8 bits
    assert not np.array_equal(one["b"], other["b"])
    assert not np.array_equal(one["a"], one["b"])


class Linen(nn.Module):
    """A convolution, an embedding, attention with biases of two axes, and a dense layer."""

    @nn.compact
    def __call__(self, image, tokens):
        x = nn.Embed(7, 4)(tokens)
        x = nn.MultiHeadDotProductAttention(2)(x)
        return nn.Conv(3, (2, 2))(image).sum() + nn.Dense(5)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False)


def of_linen(key):
    return jax.eval_shape(Linen().init, key, jnp.ones((1, 4, 4, 2)), jnp.ones((1, 3), int))


def of_nnx(key):
    return nnx.split(Nnx(nnx.Rngs(0)))[1]


def of_equinox(key):
    k = jax.random.split(key, 3)
    cell = eqx.nn.GRUCell(3, 4, key=k[2])
    layers = [eqx.nn.Conv2d(2, 3, 2, key=k[0]), eqx.nn.Linear(4, 5, key=k[1]), cell]
    return eqx.filter(layers, eqx.is_inexact_array)


def of_torch(key):
    k = jax.random.split(key, 2)
    names = ("features.0.weight", "features.0.bias", "head.weight", "head.bias")
    shapes = ((5, 3, 2, 2), (5,), (4, 5), (4,))
    return {n: jax.random.normal(k[0], s) for n, s in zip(names, shapes, strict=True)}


@pytest.mark.parametrize("made", [of_linen, of_nnx, of_equinox, of_torch])
def test_the_names_of_libraries_tell_their_filters(key, made):
    # Not square, so that a wrong axis has another number of filters.
    params = jax.tree.map(lambda a: jax.random.normal(key, a.shape), made(key))
    zeroed = filter_normalized_direction(params, key=key)
    scaled = filter_normalized_direction(params, key=key, biases="scale")
    outputs = {"kernel": -1, "weight": 0, "weight_ih": 0, "weight_hh": 0, "embedding": 0}
    seen = set()
    paths = jax.tree_util.tree_leaves_with_path(params)
    both = zip(jax.tree.leaves(zeroed), jax.tree.leaves(scaled), strict=True)
    for (path, p), (zero, scale) in zip(paths, both, strict=True):
        words = re.findall(r"\w+", jax.tree_util.keystr(path).removesuffix(".value"))
        seen.add(words[-1])
        if words[-1].startswith("bias"):
            assert not zero.any()
            np.testing.assert_allclose(jnp.linalg.norm(scale), jnp.linalg.norm(p), rtol=1e-6)
        else:
            axis = outputs[words[-1]]
            # A few roundings of float32, as above.
            np.testing.assert_allclose(norms(zero, axis), norms(p, axis), rtol=1e-6)
            np.testing.assert_array_equal(zero, scale)
    assert "bias" in seen
    assert seen & set(outputs)


def test_a_given_axis_goes_before_the_names(key):
    params = {"kernel": jax.random.normal(key, (3, 4)), "weight": jax.random.normal(key, (4, 3))}
    for axis in (0, 1):
        direction = filter_normalized_direction(params, key=key, axis=axis)
        for name, leaf in params.items():
            np.testing.assert_allclose(norms(direction[name], axis), norms(leaf, axis), rtol=1e-6)


@pytest.mark.parametrize("params", [jnp.ones((3, 4)), {"linear": {"w": jnp.ones((3, 4))}}])
def test_a_name_that_does_not_tell_is_an_error(key, params):
    fix = r"pass axis=-1 for weights \(\.\.\., in, out\), used as x @ w, or axis=0 for"
    with pytest.raises(ValueError, match=fix):
        filter_normalized_direction(params, key=key)
    with pytest.raises(ValueError, match=fix):
        filter_normalize(params, params)


def test_bad_input(params):
    with pytest.raises(ValueError, match="biases must be one of 'zero', 'scale'"):
        filter_normalize(params, params, biases="keep")
    with pytest.raises(TypeError, match="direction must have the tree structure"):
        filter_normalize({"conv": params["conv"]}, params)
    with pytest.raises(ValueError, match=r"direction\['bias'\] has shape"):
        filter_normalize({**params, "bias": jnp.ones(3)}, params)
    with pytest.raises(ValueError, match=r"axis=2 is none of params\['dense'\] of shape \(7, 4\)"):
        filter_normalize(params, params, axis=2)
