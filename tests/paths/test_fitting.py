"""The oracle of the mean loss over a curve, and fits against known minima."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from flatjax import parallel
from flatjax.paths import fit_curve
from tests.compilations import count_compilations


def losses_fn(params, batch):
    inputs, targets = batch
    return jnp.square(jnp.tanh(inputs @ params["w"]) + params["b"] - targets)


@pytest.fixture
def problem(key):
    k = jax.random.split(key, 8)
    points = [
        {"w": jax.random.normal(k[i], (3,)), "b": jax.random.normal(k[i + 3], ())} for i in range(3)
    ]
    batch = jax.random.normal(k[6], (8, 3)), jax.random.normal(k[7], (8,))
    return points, batch


@pytest.mark.parametrize("make", [flatjax.bezier, flatjax.chain])
def test_the_gradient_is_that_of_the_mean_loss_over_the_positions(problem, key, make):
    points, batch = problem
    curve = make(points, free=[0, 1])
    weights = jnp.arange(8.0)
    oracle = flatjax.curve_value_and_grad(losses_fn, num_samples=3)
    (value, samples), gradient = oracle(curve, batch, key=key, weights=weights)

    def mean_loss(free):
        one = lambda t: jnp.average(losses_fn(curve.with_free(free)(t), batch), weights=weights)  # noqa: E731
        return jnp.mean(jnp.stack([one(t) for t in samples.positions]))

    wanted, exact = jax.value_and_grad(mean_loss)(curve.free)
    # Sums of eight numbers of order one in float32, in another order.
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(samples.losses.mean(), wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    traced = jax.jit(lambda c, k: oracle(c, batch, key=k, weights=weights))(curve, key)
    np.testing.assert_allclose(traced[0][0], value, rtol=1e-5)


def test_one_position_falls_into_each_part(problem, key):
    curve = flatjax.bezier(problem[0])
    drawn = np.asarray(curve.sample(key, 50, True))
    np.testing.assert_array_equal(np.floor(50 * drawn), np.arange(50))
    independent = np.asarray(curve.sample(key, 50, False))
    assert len(set(np.floor(50 * independent))) < 50


def test_over_devices_the_gradient_is_that_of_one(problem, key):
    points, batch = problem
    curve = flatjax.bezier(points)
    oracle = flatjax.curve_value_and_grad(losses_fn, num_samples=2, axis_name="data")

    # On the first device one of two examples counts, on the last none.
    weights = jnp.arange(8.0).at[6:].set(0.0)

    def local(curve, batch, weights):
        (value, _), gradient = oracle(curve, batch, key=key, weights=weights)
        return value, gradient

    mesh = parallel.make_mesh(4)
    specs = (jax.P(), jax.P("data"), jax.P("data"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P())
    value, gradient = jax.jit(mapped)(curve, batch, weights)
    one = flatjax.curve_value_and_grad(losses_fn, num_samples=2)
    (wanted, _), exact = one(curve, batch, key=key, weights=weights)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_example_of_weight_zero_does_not_count(problem, key):
    points, (inputs, targets) = problem
    curve = flatjax.bezier(points)
    padded = inputs.at[5:].set(jnp.nan), targets.at[5:].set(jnp.inf)
    weights = jnp.arange(8.0).at[5:].set(0.0)
    kept = (inputs[:5], targets[:5]), weights[:5]
    oracle = flatjax.curve_value_and_grad(losses_fn, num_samples=2)
    (value, _), gradient = oracle(curve, padded, key=key, weights=weights)
    (wanted, _), exact = oracle(curve, kept[0], key=key, weights=kept[1])
    options = {"optimizer": optax.sgd(0.1), "key": key, "num_steps": 3}
    here = fit_curve(losses_fn, curve, [padded], weights=[weights], **options)
    there = fit_curve(losses_fn, curve, [kept[0]], weights=[kept[1]], **options)
    found = value, gradient, here.losses, here.curve.free
    # The same numbers summed in float32, in another order.
    for a, b in zip(
        jax.tree.leaves(found),
        jax.tree.leaves((wanted, exact, there.losses, there.curve.free)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_every_batch_of_a_fit_has_its_own_weights(problem, key):
    points, batch = problem
    curve, weights = flatjax.bezier(points), [jnp.arange(4.0), jnp.array([3.0, 0.0, 1.0, 1.0])]
    halves = [jax.tree.map(lambda a, i=i: a[4 * i : 4 * i + 4], batch) for i in range(2)]
    options = {"optimizer": optax.sgd(0.0), "key": key, "num_steps": 4}
    fit = fit_curve(losses_fn, curve, halves, weights=weights, **options)
    oracle = flatjax.curve_value_and_grad(losses_fn)
    for step, loss in enumerate(fit.losses):
        (wanted, _), _ = oracle(
            curve, halves[step % 2], key=jax.random.fold_in(key, step), weights=weights[step % 2]
        )
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)  # a sum of four numbers


def test_padded_batches_on_four_devices_train_as_one(problem, key):
    points, batch = problem
    mesh, options = parallel.make_mesh(4), {"optimizer": optax.sgd(0.1), "num_steps": 3}
    parts = [jax.tree.map(lambda a: a[:5], batch), jax.tree.map(lambda a: a[5:], batch)]
    here = fit_curve(losses_fn, flatjax.bezier(points), parts, key=key, **options)
    split = [parallel.shard_batch(part, mesh, rows=8) for part in parts]
    there = fit_curve(
        losses_fn, flatjax.bezier(parallel.replicate(points, mesh)), [s.batch for s in split],
        weights=[s.weights for s in split], key=key, **options,
    )  # fmt: skip
    np.testing.assert_allclose(there.losses, here.losses, rtol=1e-5)
    np.testing.assert_allclose(there.curve.free["w"], here.curve.free["w"], rtol=1e-4, atol=1e-6)


def ring(w, radii):
    """Minima on a circle: the chord between two of them crosses the hill in its middle."""
    return jnp.square(jnp.square(w).sum() - radii)


def test_a_fit_goes_around_the_hill():
    a, b = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
    start = flatjax.bezier([a, jnp.array([0.0, 0.1]), b])
    seen = []
    fit = fit_curve(
        ring, start, [jnp.ones(1)], optimizer=optax.adam(0.1), key=jax.random.key(0), num_steps=120,
        num_samples=4, callback=lambda *given: seen.append(given),
    )  # fmt: skip
    positions = np.linspace(0, 1, 41)
    before, after = (
        flatjax.loss_on_curve(ring, c, jnp.ones(1), positions=positions) for c in (start, fit.curve)
    )
    assert before.maximum > 0.9
    # The parabola nearest to a half circle leaves it by some hundredths.
    assert after.maximum < 0.15
    assert fit.losses.shape == (120,)
    np.testing.assert_array_equal(fit.curve(0.0), a)
    assert [step for step, _, _ in seen] == list(range(1, 121))
    np.testing.assert_array_equal(seen[-1][1].free, fit.curve.free)
    np.testing.assert_array_equal(seen[-1][2], fit.losses[-1])


def test_a_step_is_the_oracles_and_a_fit_goes_on(problem, key):
    points, batch = problem
    curve = flatjax.chain(points)
    halves = [jax.tree.map(lambda a, i=i: a[4 * i : 4 * i + 4], batch) for i in range(2)]
    options = {"optimizer": optax.sgd(0.1, momentum=0.9), "num_samples": 2}
    fit = fit_curve(losses_fn, curve, halves, key=key, num_steps=3, **options)
    oracle = flatjax.curve_value_and_grad(losses_fn, num_samples=2)
    free, state = curve.free, options["optimizer"].init(curve.free)
    for step, batch in enumerate((halves[0], halves[1], halves[0])):
        (value, _), gradient = oracle(
            curve.with_free(free), batch, key=jax.random.fold_in(key, step)
        )
        np.testing.assert_allclose(fit.losses[step], value, rtol=1e-5)
        updates, state = options["optimizer"].update(gradient, state, free)
        free = optax.apply_updates(free, updates)
    for a, b in zip(jax.tree.leaves(fit.curve.free), jax.tree.leaves(free), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    more = fit_curve(losses_fn, fit.curve, halves, key=key, num_steps=1, state=fit.state, **options)
    again = fit_curve(losses_fn, fit.curve, halves, key=key, num_steps=1, **options)
    assert not np.allclose(more.curve.free["w"], again.curve.free["w"])  # the momentum


def test_another_fit_compiles_nothing(problem, key):
    points, batch = problem
    counts = []
    for i in range(2):
        curve = flatjax.bezier([jax.tree.map(lambda a, i=i: a + i, p) for p in points])
        with count_compilations() as count:
            fit_curve(
                lambda p, b: losses_fn(p, b), curve, [batch], optimizer=optax.adam(1e-2), key=key,
                num_steps=3,
            )  # fmt: skip
        counts.append(count.value)
    assert counts[0] > 0
    assert counts[1] == 0


def test_four_devices_train_as_one(problem, key):
    points, batch = problem
    options = {"optimizer": optax.sgd(0.1), "key": key, "num_steps": 2}
    here = fit_curve(losses_fn, flatjax.bezier(points), [batch], **options)
    mesh = parallel.make_mesh(4)
    curve = flatjax.bezier(parallel.replicate(points, mesh))
    split = parallel.shard_batch(batch, mesh).batch
    there = fit_curve(losses_fn, curve, [split], **options)
    np.testing.assert_allclose(there.losses, here.losses, rtol=1e-5)
    np.testing.assert_allclose(there.curve.free["w"], here.curve.free["w"], rtol=1e-4, atol=1e-6)


def test_bad_input(problem, key):
    points, batch = problem
    curve = flatjax.bezier(points)
    options = {"optimizer": optax.sgd(0.1), "key": key, "num_steps": 1}
    with pytest.raises(TypeError, match="one-shot iterator"):
        fit_curve(losses_fn, curve, iter([batch]), **options)
    with pytest.raises(TypeError, match="weights is a one-shot iterator"):
        fit_curve(losses_fn, curve, [batch], weights=iter([None]), **options)
    for weights in ([], [jnp.ones(8)] * 2):
        with pytest.raises(ValueError, match="one array for every batch"):
            fit_curve(losses_fn, curve, [batch], weights=weights, **options | {"num_steps": 2})
    with pytest.raises(ValueError, match="batches is empty"):
        fit_curve(losses_fn, curve, [], **options)
    with pytest.raises(TypeError, match="optimizer must be one of optax"):
        fit_curve(losses_fn, curve, [batch], **options | {"optimizer": 0.1})
    with pytest.raises(ValueError, match="no control point of the curve moves"):
        fit_curve(losses_fn, flatjax.bezier(points[:2]), [batch], **options)
    with pytest.raises(TypeError, match=r"the order is \(loss_fn, curve, batch\)"):
        fit_curve(losses_fn, points[0], [batch], **options)
    with pytest.raises(TypeError, match="call it outside jit"):
        jax.jit(lambda c: fit_curve(losses_fn, c, [batch], **options).losses)(curve)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        flatjax.curve_value_and_grad(losses_fn, num_samples=0)
