"""The tracker follows the extreme eigenpairs of an operator that changes from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import flatjax
from tests.compilations import count_compilations

N = 60
OUTLIERS = np.concatenate([[10.0, 7.0, 5.0], np.linspace(0.0, 1.0, N - 5), [-2.0, -4.0]])


def matvec(matrix, tree):
    v = jnp.concatenate([tree["a"].ravel(), tree["b"]])
    image = jnp.matmul(matrix, v, precision="highest")
    return {"a": image[: N - 10].reshape(5, -1), "b": image[N - 10 :]}


STRUCTURE = {"a": jnp.zeros((5, (N - 10) // 5)), "b": jnp.zeros(10)}


def drifting(steps, spectrum=OUTLIERS, seed=0, speed=2e-3):
    """Matrices whose eigenvectors turn by a fixed rotation and whose values grow 1 % a step."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(N, N)))[0]
    skew = rng.normal(size=(N, N))
    turn = scipy.linalg.expm(speed * (skew - skew.T))
    for i in range(steps):
        values = spectrum * 1.01**i
        yield values, jnp.asarray((basis * values) @ basis.T, jnp.float32)
        basis = turn @ basis


def wanted(values, which, k):
    rank = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    return values[np.argsort(rank)][:k]


@pytest.mark.parametrize(
    ("which", "k", "num_blocks"),
    [("LA", 1, 2), ("LA", 3, 2), ("LA", 3, 3), ("SA", 2, 3), ("LM", 2, 2), ("LM", 1, 1)],
)
def test_follows_a_drifting_operator(which, k, num_blocks, key):
    tracker = flatjax.track(k, which=which, num_blocks=num_blocks)
    for i, (values, matrix) in enumerate(drifting(25)):
        op = flatjax.operators.as_operator(jax.tree_util.Partial(matvec, matrix), STRUCTURE)
        if i == 0:
            state = tracker.init(op, key=key)
            start = int(state.num_products)
        state = tracker.update(op, state)
        if i == 0 or i >= 15:
            residuals = np.asarray(state.residual_norms, float)
            # Kato-Temple: the error is at most residual**2 / gap; every gap here exceeds 1.5, and
            # float32 adds some eps * |lambda|_max = 1.5e-6 from the matrix and from the products.
            bound = residuals**2 / 1.5 + 2e-5
            assert np.all(np.abs(np.asarray(state.values) - wanted(values, which, k)) < bound)
            # In float32 a residual is far from a bound that it is compared with.
            np.testing.assert_array_equal(state.converged, residuals <= 0.05 * abs(state.values))
            # The vectors turn by some 4e-2 rad a step in a spectrum of width 14.
            assert np.all(residuals < (0.6 if num_blocks == 1 else 0.3))
    assert int(state.num_products) == start + 25 * k * num_blocks
    assert int(state.step) == 25


def network(params, batch):
    """A network whose sharpness falls from the first step on: 8.75, 7.86, 7.44 ... 6.62."""
    inputs, targets = batch
    return 0.5 * ((jnp.tanh(inputs @ params["a"]) @ params["b"] - targets) ** 2).sum(-1)


def test_from_the_first_step_on_values_are_right_or_said_not_to_be(key):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    batch = draw(30, 4), draw(30, 2)
    params = {"a": draw(4, 8), "b": 2 * draw(8, 2)}
    tracker = flatjax.track(2)
    callback = tracker.callback(lambda p: flatjax.hessian(network, p, batch), key=key)
    H = flatjax.hessian(network, params, batch)
    pairs = flatjax.eigsh(H, 3, key=key)
    first_two = jax.tree.map(lambda a: a[:2], pairs.vectors)
    states = {
        "pairs": tracker.init(params, pairs=pairs),
        "vectors": tracker.init(H, pairs=first_two),
        "random": tracker.init(params, key=key),
    }

    @jax.jit
    def descend(params):
        gradient = jax.grad(lambda p: network(p, batch).mean())(params)
        return jax.tree.map(lambda w, g: w - 0.05 * g, params, gradient)

    truth, records = [], []
    for i in range(21):
        H = flatjax.hessian(network, params, batch)
        states = {name: tracker.update(H, state) for name, state in states.items()}
        states["operator"] = callback(i, params)
        truth.append(np.linalg.eigvalsh(np.asarray(H.to_dense(), float))[:-3:-1])
        records.append({name: jax.tree.map(np.asarray, s) for name, s in states.items()})
        params = descend(params)
    truth = np.stack(truth)
    assert truth[0, 0] > 1.1 * truth[10, 0]
    for name in records[0]:
        fields = ("values", "residual_norms", "converged")
        values, residuals, converged = (
            np.stack([getattr(r[name], field) for r in records]) for field in fields
        )
        # Of values this far apart only the true one lies within the residual; 1e-5: float32.
        right = np.abs(values - truth) <= residuals + 1e-5 * truth
        assert right[converged].all(), name
        if name == "random":
            assert not converged[0].any()
            assert converged[20].all()
        else:
            assert converged[[0, 10, 20]].all(), name
            assert values[0, 0] > 1.1 * values[10, 0], name
    np.testing.assert_array_equal(callback.history["values"], values)  # of the last, "operator"
    np.testing.assert_array_equal(callback.history["converged"], converged)


def diagonal(*entries):
    return flatjax.operators.as_operator(
        jax.tree_util.Partial(jnp.multiply, jnp.array(entries)), jnp.zeros(5)
    )


@pytest.mark.parametrize(("which", "expected"), [("LA", 9.0), ("SA", -11.0), ("LM", -11.0)])
def test_an_operator_gives_the_start(which, expected, key):
    op = diagonal(9.0, -11.0, 5.0, 0.5, 0.1)
    state = flatjax.track(which=which).init(op, key=key)
    # The error of a value is the square of its residual, 0.05 of it at most, over the gap of 4.
    np.testing.assert_allclose(state.values, [expected], rtol=5e-3)
    assert state.converged.tolist() == [True]
    assert int(state.step) == 0
    assert 0 < int(state.num_products) <= 12  # 5 of the dimension, those that verify and certify
    jitted = jax.jit(flatjax.track(which=which).init)(op, key=key)
    np.testing.assert_allclose(jitted.values, [expected], rtol=1e-5)
    assert int(jitted.num_products) == 5 + 1  # the dimension, and the certificate


def test_a_start_that_ran_out_of_products_says_so(key):
    ((_, matrix),) = drifting(1)
    op = flatjax.operators.as_operator(jax.tree_util.Partial(matvec, matrix), STRUCTURE)
    state = flatjax.track(2).init(op, key=key, max_products=4)
    assert int(state.num_products) == 4
    assert not state.converged.any()
    assert np.all(np.asarray(state.residual_norms) > 0.05 * np.abs(state.values))


@pytest.mark.parametrize(
    ("which", "expected"), [("LA", [4.0, 3.0]), ("SA", [-5.0, 1.0]), ("LM", [-5.0, 4.0])]
)
def test_given_pairs_are_taken_in_the_order_of_which(which, expected, key):
    entries = [1.0, 3.0, -5.0, 4.0, 0.0]
    pairs = flatjax.eigsh(diagonal(*entries), 4, which="LM", key=key)
    pairs = pairs._replace(residual_norms=jnp.abs(pairs.values) * 0.02)
    state = flatjax.track(2, which=which, tol=0.025).init(jnp.zeros(5), pairs=pairs)
    np.testing.assert_allclose(state.values, expected, rtol=1e-5)
    np.testing.assert_allclose(state.residual_norms, 0.02 * np.abs(expected), rtol=1e-5)
    found = [entries[i] for i in np.argmax(np.abs(state.vectors), axis=1)]
    np.testing.assert_allclose(found, expected)
    assert state.converged.all()
    assert int(state.num_products) == 0
    tight = flatjax.track(2, which=which, tol=0.015)
    assert not tight.init(jnp.zeros(5), pairs=pairs).converged.any()
    # A state is pairs, too.
    again = flatjax.track(1, which=which).init(jnp.zeros(5), pairs=state)
    np.testing.assert_array_equal(again.values, state.values[:1])


class Listed(NamedTuple):
    values: Any
    vectors: Any
    residual_norms: Any
    complete: Any


@pytest.mark.parametrize("complete", [None, True, False])
def test_a_list_known_to_lack_a_pair_is_not_converged(complete):
    pairs = Listed(jnp.array([4.0]), jnp.eye(5)[:1], jnp.zeros(1), complete)
    state = flatjax.track().init(jnp.zeros(5), pairs=pairs)
    assert bool(state.converged[0]) == (complete is not False)


def test_orthogonal_iteration_does_not_take_the_wrong_end_for_the_largest(key):
    op = diagonal(2.0, -5.0, 1.0, 0.5, 0.0)
    tracker = flatjax.track(2, num_blocks=1)
    state = tracker.init(jnp.zeros(5), key=key)
    for _ in range(40):
        state = tracker.update(op, state)
    # The second largest is 1; -5 is what the iteration keeps.
    np.testing.assert_allclose(state.values, [2.0, -5.0], rtol=1e-4)
    assert state.converged.tolist() == [True, False]
    largest = flatjax.track(2, num_blocks=1, which="LM").init(op, key=key)
    assert largest.converged.all()


def test_values_that_are_rounding_beside_the_largest_have_converged(key):
    op = diagonal(1.0, 0.0, 0.0, 0.0, 0.0)
    pairs = Listed(jnp.array([1.0, 1e-9]), jnp.eye(5)[:2], jnp.array([0.0, 5e-7]), None)
    tracker = flatjax.track(2)
    assert tracker.init(op, pairs=pairs).converged.all()
    larger = pairs._replace(residual_norms=jnp.array([0.0, 5e-6]))
    assert tracker.init(op, pairs=larger).converged.tolist() == [True, False]


def test_bare_vectors_are_made_orthonormal():
    vectors = jnp.array([[3.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    state = flatjax.track(2).init(jnp.zeros(3, jnp.bfloat16), pairs=vectors)
    np.testing.assert_allclose(state.vectors @ state.vectors.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(state.vectors[:, 2], 0, atol=1e-6)
    assert state.vectors.dtype == jnp.float32
    assert np.isnan(state.values).all()
    assert not state.converged.any()


def test_residuals_and_drift_are_those_of_the_definition(key):
    tracker = flatjax.track(2, num_blocks=2)
    state = tracker.init(STRUCTURE, key=key)
    for _, matrix in drifting(6):
        before = state
        state = tracker.update(jax.tree_util.Partial(matvec, matrix), state)

    def flat(tree):
        a, b = np.asarray(tree["a"], float), np.asarray(tree["b"], float)
        return np.concatenate([a.reshape(2, -1), b], axis=1)

    new, old, a = flat(state.vectors), flat(before.vectors), np.asarray(matrix, float)
    residual = np.linalg.norm(new @ a - np.asarray(state.values)[:, None] * new, axis=1)
    # float32: the products round at eps * |A| = 1e-6.
    np.testing.assert_allclose(state.residual_norms, residual, atol=2e-5)
    np.testing.assert_allclose(
        state.drift, np.linalg.norm(new - (new @ old.T) @ old, axis=1), atol=1e-5
    )
    np.testing.assert_allclose(new @ new.T, np.eye(2), atol=1e-5)


def test_standing_still_converges_to_the_float32_floor(key):
    ((_, matrix),) = drifting(1)
    tracker = flatjax.track(3, num_blocks=3)
    state = tracker.init(STRUCTURE, key=key)
    op = jax.tree_util.Partial(matvec, matrix)
    for _ in range(30):
        state = tracker.update(op, state)
    # eps * |lambda|_max * sqrt(n) ~ 1e-5: the residual of a converged pair is rounding.
    assert np.all(np.asarray(state.residual_norms) < 5e-5)
    assert np.all(np.asarray(state.drift) < 1e-4)
    np.testing.assert_allclose(state.values, [10.0, 7.0, 5.0], rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_zero_and_scaled_operators_stay_finite(scale, key):
    tracker = flatjax.track(2, num_blocks=3)  # six directions in three dimensions: most are masked
    state = tracker.init(jnp.zeros(3), key=key)
    diagonal = jnp.array([3.0, 2.0, 1.0]) * scale
    for _ in range(5):
        state = tracker.update(jax.tree_util.Partial(jnp.multiply, diagonal), state)
    np.testing.assert_allclose(state.values, np.array([3.0, 2.0]) * scale, rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_negative_semidefinite_operator_reports_no_false_zero(key):
    # A masked direction has the Ritz value zero, which is larger than every true one here.
    tracker = flatjax.track(1, num_blocks=3)
    state = tracker.init(jnp.zeros(2), key=key)
    for _ in range(4):
        op = jax.tree_util.Partial(jnp.multiply, jnp.array([-1.0, -3.0]))
        state = tracker.update(op, state)
    np.testing.assert_allclose(state.values, [-1.0], rtol=1e-5)


def quadratic(params, batch):
    return 0.5 * (batch @ params["w"]) ** 2


def test_inside_a_jitted_train_step_and_as_a_callback(key):
    batch = jax.random.normal(key, (20, 5))
    params = {"w": jnp.ones(5)}
    tracker = flatjax.track(1)
    top = np.linalg.eigvalsh(np.asarray(batch.T @ batch / 20, float))[-1]

    @jax.jit
    def step(params, state):
        op = flatjax.hessian(quadratic, params, batch)
        grads = jax.grad(lambda p: quadratic(p, batch).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), tracker.update(op, state)

    state = tracker.init(params, key=key)
    callback = tracker.callback(lambda p, b: flatjax.hessian(quadratic, p, b), key=key, every=2)
    for i in range(12):
        callback(i, params, batch)
        params, state = step(params, state)
    np.testing.assert_allclose(state.values[0], top, rtol=1e-4)  # float32, residual**2 / gap
    history = callback.history
    assert history["steps"].tolist() == [0, 2, 4, 6, 8, 10]
    assert history["values"].shape == history["drift"].shape == (6, 1)
    np.testing.assert_allclose(history["values"][-1, 0], top, rtol=1e-3)


def test_streams_are_driven_from_the_host(key):
    batch = jax.random.normal(key, (20, 5))
    stream = flatjax.over_batches(
        lambda b: flatjax.hessian(quadratic, {"w": jnp.ones(5)}, b), [batch[:7], batch[7:]]
    )
    tracker = flatjax.track(1)
    state = tracker.init(stream, key=key)
    for _ in range(8):
        state = tracker.update(stream, state)
    top = np.linalg.eigvalsh(np.asarray(batch.T @ batch / 20, float))[-1]
    np.testing.assert_allclose(state.values[0], top, rtol=1e-4)


def test_a_new_batch_compiles_nothing(key):
    tracker = flatjax.track(1)
    state = tracker.init({"w": jnp.zeros(5)}, key=key)
    counts = []
    for i in range(3):
        batch = jax.random.normal(jax.random.fold_in(key, i), (20, 5))
        with count_compilations() as count:
            op = flatjax.hessian(lambda p, b: quadratic(p, b), {"w": jnp.ones(5)}, batch)
            state = tracker.update(op, state)
        counts.append(count.value)
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"which": "BE"}, "which must be"),
        ({"num_blocks": 4}, "num_blocks must be one of 1, 2, 3"),
        ({"which": "SA", "num_blocks": 1}, "use num_blocks=2"),
        ({"tol": 0.0}, "tol must be above 0.0 and below 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        flatjax.track(**arguments)


def test_bad_use(key):
    with pytest.raises(ValueError, match="exceed the dimension"):
        flatjax.track(4).init(jnp.zeros(3), key=key)
    for given in ({}, {"key": key, "pairs": jnp.eye(3)[:1]}):
        with pytest.raises(ValueError, match=r"from key=.* or from pairs="):
            flatjax.track().init(jnp.zeros(3), **given)
    pairs = Listed(jnp.ones(1), jnp.eye(3)[:1], jnp.zeros(1), None)
    with pytest.raises(ValueError, match="at least 2 vectors along one leading axis"):
        flatjax.track(2).init(jnp.zeros(3), pairs=pairs)
    for vectors in (jnp.eye(3), jnp.float32(1)):
        with pytest.raises(ValueError, match="must hold 2 vectors along one leading axis"):
            flatjax.track(2).init(jnp.zeros(3), pairs=vectors)
    with pytest.raises(ValueError, match="linearly independent"):
        flatjax.track(2).init(jnp.zeros(3), pairs=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="a vector of pairs has shape"):
        flatjax.track().init(jnp.zeros(3), pairs=jnp.ones((1, 4)))
    with pytest.raises(TypeError, match="a vector of pairs must have the tree structure"):
        flatjax.track().init(jnp.zeros(3), pairs={"w": jnp.ones((1, 3))})
    tracker = flatjax.track()
    state = tracker.init(jnp.zeros(3), key=key)
    with pytest.raises(ValueError, match="shape"):
        tracker.update(
            flatjax.hessian(quadratic, {"w": jnp.ones(3)}, jnp.ones((2, 3))),
            state._replace(vectors={"w": jnp.ones((1, 4))}),
        )
    with pytest.raises(ValueError, match="every must be at least 1"):
        tracker.callback(lambda p: None, key=key, every=0)
    op = flatjax.hessian(quadratic, {"w": jnp.ones(3)}, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="a function of the params that makes an operator, got an"):
        tracker.callback(op, key=key)
    with pytest.raises(TypeError, match="step must be an integer, got dict: call callback"):
        tracker.callback(lambda p: None, key=key)({"w": jnp.ones(3)}, 1)
