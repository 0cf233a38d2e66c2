"""The loss along a line and the barrier on it: closed forms, dtypes, tracing, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.landscape import barrier, loss_along
from tests.compilations import count_compilations


def losses_fn(params, batch, scale=1.0):
    inputs, targets = batch
    return scale * 0.5 * (inputs @ params["w"] + params["b"] - targets) ** 2


@pytest.fixture
def problem(key, dtype):
    k = jax.random.split(key, 4)
    params = {"w": jax.random.normal(k[0], (3,), dtype), "b": jnp.ones((), dtype)}
    direction = {"w": jax.random.normal(k[1], (3,), dtype), "b": -jnp.ones((), dtype)}
    batch = jax.random.normal(k[2], (6, 3), dtype), jax.random.normal(k[3], (6,), dtype)
    return params, direction, batch


def test_values_are_those_of_the_loss_at_each_point(problem, dtype):
    params, direction, batch = problem
    positions = np.linspace(-1, 2, 5)
    line = loss_along(losses_fn, params, batch, 3.0, direction=direction, positions=positions)
    expected = [
        losses_fn(jax.tree.map(lambda p, d, t=t: p + t * d, params, direction), batch, 3.0).mean()
        for t in jnp.asarray(positions, dtype)
    ]
    assert line.losses.dtype == line.positions.dtype == dtype
    # The same sums, compiled differently: a few roundings.
    np.testing.assert_allclose(line.losses, expected, rtol=20 * jnp.finfo(dtype).eps)


def test_curvature_of_a_quadratic_is_read_off_the_line(problem, dtype):
    params, direction, batch = problem
    inputs, _ = batch
    left, here, right = loss_along(
        losses_fn, params, batch, direction=direction, positions=[-1, 0, 1]
    ).losses
    slopes = inputs @ direction["w"] + direction["b"]
    # A second difference of numbers of order one loses a few digits.
    np.testing.assert_allclose(
        left - 2 * here + right, jnp.mean(slopes**2), rtol=100 * float(jnp.finfo(dtype).eps)
    )


def test_a_scalar_loss_gives_the_same(key):
    params, direction = jax.random.normal(key, (2, 3))
    batch = jnp.ones((4, 3)), jnp.arange(4.0)
    per_example = lambda w, b: 0.5 * (b[0] @ w - b[1]) ** 2  # noqa: E731
    mean = lambda w, b: per_example(w, b).mean()  # noqa: E731
    one, other = (
        loss_along(f, params, batch, direction=direction, positions=[0.0, 0.5])
        for f in (per_example, mean)
    )
    np.testing.assert_array_equal(one.losses, other.losses)


def test_one_program_serves_all_positions_directions_and_batches(key):
    counts = []
    for i in range(3):
        w, d = jax.random.normal(jax.random.fold_in(key, i), (2, 3))
        batch = jnp.ones((4, 3)) * i
        with count_compilations() as count:
            loss_along(
                lambda w, x: (x @ w) ** 2, w, batch, direction=d, positions=np.arange(5.0) + i
            )
        counts.append(count.value)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_inside_jit_and_grad(key):
    params, direction = jax.random.normal(key, (2, 3))
    batch = jax.random.normal(key, (4, 3))
    loss = lambda w, x: jnp.cos(x @ w)  # noqa: E731
    positions = jnp.array([0.0, 0.3, 1.0])
    run = lambda w: loss_along(loss, w, batch, direction=direction, positions=positions).losses  # noqa: E731
    np.testing.assert_allclose(jax.jit(run)(params), run(params), rtol=1e-6)
    slope = jax.jacobian(run)(params) @ direction
    step = 1e-2
    nearby = loss_along(loss, params, batch, direction=direction, positions=[-step, step]).losses
    # Central differences of a smooth function in float32: error step**2 plus eps / step.
    np.testing.assert_allclose(slope[0], (nearby[1] - nearby[0]) / (2 * step), atol=1e-3)


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_steps_smaller_than_the_spacing_of_the_params_are_seen(low):
    params, direction = jnp.ones(1, low), jnp.full(1, 2.0**-6, low)
    line = loss_along(
        lambda w, _: w[0], params, None, direction=direction, positions=[0, 2.0**-8, 1]
    )
    np.testing.assert_array_equal(line.losses, [1.0, 1.0 + 2.0**-14, 1.0 + 2.0**-6])
    assert line.losses.dtype == line.positions.dtype == jnp.float32


def test_every_leaf_keeps_its_own_precision(x64):
    """A float64 leaf beside others makes the line's numbers float64, not the others."""
    params = {name: jnp.ones(1, name) for name in ("bfloat16", "float32", "float64")}
    seen = []

    def loss(w, _):
        seen.append({name: str(a.dtype) for name, a in w.items()})
        return w["float64"][0]

    line = loss_along(loss, params, None, direction=params, positions=[1.0])
    assert seen == [{"bfloat16": "float32", "float32": "float32", "float64": "float64"}]
    assert line.losses.dtype == jnp.float64


def test_what_is_not_finite_stays_so():
    w = jnp.float32(1.0)
    line = loss_along(lambda w, _: jnp.log(w), w, None, direction=w, positions=[-2, 0])
    assert np.isnan(line.losses[0])
    assert line.losses[1] == 0


def test_bad_input(key):
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"positions must have shape \(m,\)"):
        loss_along(losses_fn, w, None, direction=w, positions=0.5)
    with pytest.raises(ValueError, match="direction has shape"):
        loss_along(losses_fn, w, None, direction=jnp.ones(2), positions=[0.0])
    with pytest.raises(TypeError, match="direction must have the tree structure"):
        loss_along(losses_fn, w, None, direction=[w], positions=[0.0])


def test_padding_does_not_count(problem, dtype):
    params, direction, batch = problem
    padded = jax.tree.map(lambda a: jnp.concatenate([a, jnp.full_like(a[:2], jnp.inf)]), batch)
    weights = jnp.array([1.0] * 6 + [0.0] * 2)
    options = {"positions": [-1, 0, 1]}
    line = loss_along(losses_fn, params, padded, direction=direction, weights=weights, **options)
    expected = loss_along(losses_fn, params, batch, direction=direction, **options)
    # The same sums, compiled differently: a few roundings.
    rtol = 20 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(line.losses, expected.losses, rtol=rtol)


def test_weights_need_a_loss_of_each_example(problem):
    params, direction, batch = problem
    mean = lambda *a: losses_fn(*a).mean()  # noqa: E731
    with pytest.raises(ValueError, match="weights need per-example losses"):
        loss_along(mean, params, batch, direction=direction, positions=[0.0], weights=jnp.ones(6))
    with pytest.raises(ValueError, match="weights must have one entry an example"):
        loss_along(
            losses_fn, params, batch, direction=direction, positions=[0.0], weights=jnp.ones(5)
        )


def test_a_barrier_is_the_rise_above_the_chord():
    # On this line the loss is (t (t - 1))^2 16 + 3 t: a chord from 0 to 3, and a rise of 1.
    double_well = lambda w, _: 16 * (w[0] * (w[0] - 1)) ** 2 + 3 * w[0] + w[1]  # noqa: E731
    a, b = jnp.array([0.0, 5.0]), jnp.array([1.0, 5.0])
    found = barrier(double_well, a, b, None, num_points=5)
    np.testing.assert_array_equal(found.ends, [5.0, 8.0])
    assert float(found.value) == 1.0
    assert float(found.position) == 0.5
    np.testing.assert_array_equal(found.line.positions, [0, 0.25, 0.5, 0.75, 1])
    # A metric each.
    both = barrier(lambda w, _: (double_well(w, _), w[1]), a, b, None, num_points=5)
    assert [float(v) for v in both.value] == [1.0, 0.0]


def test_a_convex_loss_has_no_barrier_and_a_failing_one_no_number(key):
    a, b = jax.random.normal(key, (2, 8))
    bowl = lambda w, _: jnp.square(w).sum()  # noqa: E731
    assert float(barrier(bowl, a, b, None).value) == 0.0
    found = barrier(lambda w, _: jnp.log(w), jnp.float32(-1), jnp.float32(1), None, num_points=3)
    assert np.isnan(found.value)
    hole = barrier(
        lambda w, _: jnp.where(w == 0, jnp.nan, w), jnp.float32(-1), jnp.float32(1), None
    )
    assert np.isnan(hole.value)
    assert float(hole.position) == 0.5
    # The ends are those points exactly, whatever rounding does to their difference.
    far, near = jnp.array([1e8, 1.0]), jnp.array([1.0, 1e-8])
    ends = barrier(lambda w, _: w[0], far, near, None, num_points=3).ends
    np.testing.assert_array_equal(ends, [1e8, 1.0])


def test_bad_barriers():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match="num_points must be at least 3"):
        barrier(lambda w, _: w.sum(), w, w, None, num_points=2)
    with pytest.raises(ValueError, match=r"b has shape \(2,\)"):
        barrier(lambda w, _: w.sum(), w, jnp.ones(2), None)
