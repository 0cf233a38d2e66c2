"""Random directions: norms and angles, small filters, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.landscape import random_directions


@pytest.fixture
def params(key):
    k = jax.random.split(key, 4)
    return {
        # The filters of the first layer have one entry: no two of them are orthogonal.
        "first": {"kernel": jax.random.normal(k[0], (1, 6)), "bias": jnp.ones(6)},
        "conv": {"kernel": jax.random.normal(k[1], (3, 3, 2, 5))},
        "last": {"kernel": jax.random.normal(k[2], (6, 3)) * jnp.array([1.0, 10.0, 0.0])},
    }


def flat(directions):
    return np.concatenate(
        [np.asarray(a, np.float64).reshape(len(a), -1) for a in jax.tree.leaves(directions)], axis=1
    )


def cosines(directions):
    rows = flat(directions)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_filters_have_the_params_norms_and_directions_are_orthogonal(key, params):
    num = 3
    found = random_directions(params, num, key=key)
    for layer in params:
        kernel, rows = params[layer]["kernel"], found[layer]["kernel"]
        assert rows.shape == (num, *kernel.shape)
        norms = np.linalg.norm(
            np.asarray(rows, np.float64).reshape(num, -1, kernel.shape[-1]), axis=1
        )
        wanted = np.linalg.norm(
            np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), axis=0
        )
        # A few roundings of float32 in sums of at most 18 squares, and a factor of norm one.
        np.testing.assert_allclose(norms, np.tile(wanted, (num, 1)), rtol=2e-6, atol=1e-12)
    assert not found["first"]["bias"].any()
    # Float32 inner products of some 120 numbers, beside the squared norms.
    np.testing.assert_allclose(cosines(found), np.eye(num), atol=1e-6)
    # The small filters alone are not.
    small = np.asarray(found["first"]["kernel"][:, 0], np.float64)
    assert abs(small[0] @ small[1]) > 1e-3
    independent = cosines(random_directions(params, num, key=key, orthogonal=False))
    assert np.abs(independent - np.eye(num)).max() > 1e-4


def test_leaves_have_the_params_norms(key, params):
    names = {"w": params["conv"]["kernel"], "b": params["first"]["bias"]}  # that tell no layout
    found = random_directions(names, 2, key=key, normalize="layer", biases="scale")
    for name, leaf in names.items():
        norms = np.linalg.norm(found[name].reshape(2, -1), axis=1)
        np.testing.assert_allclose(norms, float(jnp.linalg.norm(leaf)), rtol=2e-6)
        rows = np.asarray(found[name], np.float64).reshape(2, -1)
        assert abs(rows[0] @ rows[1]) < 1e-6 * norms[0] ** 2
    assert not random_directions(names, 2, key=key, normalize="layer")["b"].any()


def test_bare_directions_keep_the_norms_of_their_numbers(key):
    params = {"a": jnp.zeros((40, 50)), "b": jnp.zeros(7)}
    found = random_directions(params, 3, key=key, normalize="none")
    drawn = random_directions(params, 3, key=key, normalize="none", orthogonal=False)
    norms = np.linalg.norm(flat(drawn), axis=1)
    np.testing.assert_allclose(np.linalg.norm(flat(found), axis=1), norms, rtol=1e-5)
    np.testing.assert_allclose(norms**2, 2007, rtol=0.2)  # six standard deviations of chi-square
    np.testing.assert_allclose(cosines(found), np.eye(3), atol=1e-6)
    # The first one is as drawn, divided by its norm and multiplied again.
    np.testing.assert_allclose(found["a"][0], drawn["a"][0], rtol=1e-6)


def test_directions_of_nearly_dependent_numbers_are_orthogonal(key):
    """Among many triples in three dimensions some nearly lie in a plane: once is not enough."""
    filters = random_directions({"kernel": jnp.ones((3, 400))}, 3, key=key)["kernel"]
    rows = np.moveaxis(np.asarray(filters, np.float64), -1, 0)
    draw = lambda k: random_directions(jnp.ones(3), 3, key=k, normalize="none")  # noqa: E731
    whole = np.asarray(jax.vmap(draw)(jax.random.split(key, 400)), np.float64)
    for triples in (rows, whole):
        unit = triples / np.linalg.norm(triples, axis=-1, keepdims=True)
        # A few roundings of float32 in sums of three products.
        np.testing.assert_allclose(
            unit @ np.swapaxes(unit, 1, 2), np.eye(3)[None] + 0 * unit, atol=1e-6
        )


def test_a_mask_leaves_the_others_where_they_are(key, params):
    mask = {"first": False, "conv": True, "last": True}
    found = random_directions(params, 2, key=key, mask=mask)
    assert not found["first"]["kernel"].any()
    assert found["conv"]["kernel"].all()
    np.testing.assert_allclose(cosines(found), np.eye(2), atol=1e-6)
    again = random_directions(
        params, 2, key=key, mask=lambda p: jax.tree.map(lambda a: a.ndim > 2, p)
    )
    assert not again["last"]["kernel"].any()


def test_bad_input(key, params):
    tiny = {"kernel": jnp.array([[1.0, 2.0]])}
    with pytest.raises(ValueError, match="2 directions cannot be orthogonal"):
        random_directions(tiny, 2, key=key)
    assert random_directions(tiny, 2, key=key, orthogonal=False)["kernel"].shape == (2, 1, 2)
    with pytest.raises(ValueError, match="3 directions cannot be orthogonal"):
        random_directions(tiny, 3, key=key, normalize="none")
    with pytest.raises(ValueError, match="no leaf moves"):
        random_directions(params, 2, key=key, mask=False)
    with pytest.raises(TypeError, match="one boolean for a leaf"):
        random_directions(tiny, 2, key=key, mask={"kernel": jnp.array([[True, False]])})
    with pytest.raises(ValueError, match="normalize must be one of 'filter', 'layer', 'none'"):
        random_directions(params, 2, key=key, normalize="weight")
    with pytest.raises(ValueError, match="its name does not say"):
        random_directions({"w": jnp.ones((2, 3))}, 2, key=key)
    with pytest.raises(ValueError, match="key is missing"):
        random_directions(params, 2, key=None)
