"""Measures of normalised networks: exact under rescaling of the weights; angles; groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flatjax
from flatjax.measures import angular_update, effective_learning_rate, scale_invariant_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

SCALES = {"first": 7.0, "second": 0.01}


@pytest.fixture(scope="module")
def points():
    """The network at its weights and at rescaled ones, with dense Hessians."""
    with jax.enable_x64(True):
        params, batch = networks.normalized_params(), networks.data()
        scaled = {name: SCALES[name] * w for name, w in params.items()}
        out = []
        for w in (params, scaled):
            H = flatjax.hessian(networks.normalized_loss, w, batch)
            out.append((H, w, np.asarray(H.to_dense())))
        return out


@pytest.mark.parametrize("statistic", ["eigenvalue", "trace"])
def test_ignores_the_scale_of_every_group(points, statistic):
    options = {"tol": 1e-9} if statistic == "eigenvalue" else {"num_products": 20}
    results = [
        scale_invariant_sharpness(H, w, key=jax.random.key(0), statistic=statistic, **options)
        for H, w, _ in points
    ]
    # The same start or probes, so equal up to the rounding of a Hessian at rescaled weights.
    np.testing.assert_allclose(results[1].total, results[0].total, rtol=1e-9)
    assert set(results[0].values) == {"first", "second"}
    assert all(results[0].converged.values())
    assert results[0].num_products > 20  # of both groups
    for name, c in SCALES.items():
        np.testing.assert_allclose(results[1].values[name], results[0].values[name], rtol=1e-9)
        ratio = results[1].curvatures[name] / results[0].curvatures[name]
        np.testing.assert_allclose(ratio, 1 / c**2, rtol=1e-9)
    # Against the dense blocks.
    _, params, dense = points[0]
    for i, name in enumerate(("first", "second")):
        block = dense[20 * i : 20 * (i + 1), 20 * i : 20 * (i + 1)]
        norm = float((params[name] ** 2).sum())
        value, error = results[0].values[name], results[0].errors[name]
        if statistic == "eigenvalue":
            np.testing.assert_allclose(value, norm * np.linalg.eigvalsh(block)[-1], rtol=1e-9)
        else:
            # As few dimensions as this are answered exactly: the error is zero, up to rounding.
            gap = abs(float(value) - norm * np.trace(block))
            assert gap < 4 * float(error) + 1e-12 * abs(float(value))


def test_one_group_of_all(points):
    H, params, dense = points[0]
    result = scale_invariant_sharpness(H, params, by="all", key=jax.random.key(0), tol=1e-9)
    norm = sum(float((w**2).sum()) for w in params.values())
    np.testing.assert_allclose(result.total, norm * np.linalg.eigvalsh(dense)[-1], rtol=1e-9)


def test_effective_learning_rate_by_group():
    params = {"a": {"w": jnp.asarray([3.0, 4.0]), "b": jnp.ones(2)}, "c": jnp.zeros(1)}
    rates = {by: effective_learning_rate(params, 0.5, by=by) for by in ("leaf", "layer", "all")}
    assert list(rates["leaf"]) == ["a/b", "a/w", "c"]
    assert list(rates["layer"]) == ["a", "c"]
    np.testing.assert_allclose(rates["leaf"]["a/w"], 0.02)
    np.testing.assert_allclose(rates["layer"]["a"], 0.5 / 27)
    np.testing.assert_allclose(rates["all"]["all"], 0.5 / 27)
    assert np.isinf(rates["leaf"]["c"])
    named = effective_learning_rate(params, 0.5, by=lambda path: path[0] == "a")
    np.testing.assert_allclose(named["True"], 0.5 / 27)


def test_effective_learning_rate_turns_the_direction(points):
    # A step of eta at c w turns w/|w| as a step of eta/c^2 at w, and their effective rates agree.
    _, params, _ = points[0]
    batch, c, eta = networks.data(), 10.0, 1.0
    turned, rates = [], []
    for scale, rate in ((1.0, eta), (c, c**2 * eta)):
        w = {name: scale * a for name, a in params.items()}
        g = jax.jit(jax.grad(networks.normalized_loss))(w, batch)
        new = {name: w[name] - rate * g[name] for name in w}
        turned.append(float(angular_update(w, new)["first"]))
        rates.append(float(effective_learning_rate(w, rate)["first"]))
    np.testing.assert_allclose(*turned, rtol=1e-10)
    np.testing.assert_allclose(*rates, rtol=1e-13)
    assert turned[0] > 1e-3


def test_angular_update():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 5))
    angle = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    before, after = {"w": jnp.asarray(u)}, {"w": jnp.asarray(3.0 * v)}
    np.testing.assert_allclose(angular_update(before, after)["w"], angle, rtol=1e-14)
    np.testing.assert_allclose(angular_update(before, {"w": -before["w"]})["w"], np.pi)
    same = angular_update(before, before, by="all")["all"]
    np.testing.assert_allclose(same, 0.0, atol=1e-15)  # one rounding of a unit vector


def test_small_angles_in_float32():
    with jax.enable_x64(False):
        before = jnp.asarray([1.0, 0.0], jnp.float32)
        after = jnp.asarray([1.0, 1e-5], jnp.float32)
        angle = float(angular_update({"w": before}, {"w": after})["w"])
    np.testing.assert_allclose(angle, 1e-5, rtol=1e-6)  # arccos would give 0


def test_bad_arguments(points):
    H, params, _ = points[0]
    with pytest.raises(ValueError, match="statistic must be one of"):
        scale_invariant_sharpness(H, params, key=jax.random.key(0), statistic="norm")
    with pytest.raises(ValueError, match="takes tol and max_products, not num_products"):
        scale_invariant_sharpness(H, params, key=jax.random.key(0), num_products=20)
    with pytest.raises(TypeError, match="op must be an operator"):
        scale_invariant_sharpness(lambda v: v, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match="by must be"):
        effective_learning_rate(params, 0.1, by="module")
    with pytest.raises(ValueError, match="learning_rate must be at least 0"):
        effective_learning_rate(params, -0.1)
    with pytest.raises(ValueError, match="new_params"):
        angular_update({"w": jnp.ones(2)}, {"w": jnp.ones(3)})


def test_groups_are_estimated_independently():
    """Two equal blocks: with one key for both their errors would be one error."""
    block = networks.spd(4)
    matrix = jnp.asarray(np.kron(np.eye(2), block))

    def mv(v):
        image = matrix @ jnp.concatenate([v["a"], v["b"]])
        return {"a": image[:4], "b": image[4:]}

    params = {"a": jnp.ones(4), "b": jnp.ones(4)}
    result = scale_invariant_sharpness(
        flatjax.operators.as_operator(mv, params), params, key=jax.random.key(0), statistic="trace",
        method="hutchinson", num_products=2,
    )  # fmt: skip
    assert float(result.curvatures["a"]) != float(result.curvatures["b"])


def test_groups_of_flax_nnx_are_named_as_its_blocks_are():
    params = nnx.State({"w": nnx.Param(jnp.asarray([3.0, 4.0]))})  # the path of a leaf is w.value
    H = flatjax.hessian(lambda p, _: 0.5 * (p["w"][...] ** 2).sum(), params, None)
    result = scale_invariant_sharpness(H, params, key=jax.random.key(0))
    np.testing.assert_allclose(result.values["w"], 25.0, rtol=1e-12)
