"""The same update on one device, under jit with a sharded batch, in shard_map and in pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import (
    assert_close,
    flat,
    functions,
    loss_fn,
    model,
    network,
    per_example,
    sequences,
)

XENT = losses.softmax_cross_entropy
DEVICES, EXAMPLES = 4, 16


def sam_groups(groups):
    return lambda **k: ft.sam(0.3, groups=groups, loss_fn=loss_fn, **k)


TRANSFORMS = {
    "sam": lambda **k: ft.sam(0.3, diagnostics=True, **k),
    "sam_second_order": lambda **k: ft.sam(0.3, ascent_steps=2, second_order=True, **k),
    "sam_every": lambda **k: ft.sam(0.3, every=2, ascent=ft.Ascent(p=1.5), **k),
    "sam_2_groups": sam_groups(2),
    "sam_4_groups": sam_groups(4),
    "sam_8_groups": sam_groups(8),
    "looksam": lambda **k: ft.looksam(0.3, every=2, diagnostics=True, **k),
    "gsam": lambda **k: ft.gsam(0.3, **k),
    "friendly_sam": lambda **k: ft.friendly_sam(0.3, **k),
    "momentum_sam": lambda **k: ft.momentum_sam(0.1, **k),
    "gradient_penalty": lambda **k: ft.gradient_penalty(0.3, **k),
    "gradient_penalty_fd": lambda **k: ft.gradient_penalty(0.3, mode="forward", **k),
    "fisher_penalty": lambda **k: ft.fisher_penalty(
        model, XENT, coef=0.3, every=2, sub_batch=8, diagnostics=True, **k
    ),
    "input_gradient_penalty": lambda **k: ft.input_gradient_penalty(model, XENT, coef=0.3, **k),
    "isgr": lambda **k: ft.stochastic_implicit_gradient_regularization(
        0.3, loss_fn=loss_fn, micro_batches=8, **k
    ),
    "isgr_2": lambda **k: ft.stochastic_implicit_gradient_regularization(
        0.3, loss_fn=loss_fn, micro_batches=2, **k
    ),
    "gradient_noise": lambda **k: ft.gradient_noise(
        0.1, covariance="gradient", loss_fn=per_example, **k
    ),
    "gradient_noise_diagonal": lambda **k: ft.gradient_noise(
        0.1, covariance="diagonal", loss_fn=per_example, **k
    ),
    "label_noise": lambda **k: ft.label_noise(model, XENT, flip_probability=0.5, **k),
    "langevin": lambda **k: ft.langevin(1e-3, num_data=8, friction=0.5, **k),
    "entropy_sgd": lambda **k: ft.entropy_sgd(inner_steps=2, **k),
}
# Each costs four programs: a choice of kinds runs always, all of them with the slow tests.
FAST = {
    "sam",
    "sam_2_groups",
    "sam_8_groups",
    "fisher_penalty",
    "isgr_2",
    "penalty",
    "gradient_noise",
}


def named(table):
    return [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in table]


@pytest.fixture(scope="module")
def data():
    return network(n=EXAMPLES)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def two_updates(tx, params, batch, axis_name=None):
    """Two updates at fixed params (one where there is no memory), and the diagnostics."""
    g = jax.grad(loss_fn)(_local(params, axis_name), batch)
    state = tx.init(params)
    out = None
    for _ in range(1 if len(jax.tree.leaves(state)) == 1 else 2):
        out, state = tx.update(g, state, params, **functions(batch))
    diagnostics = getattr(state, "metrics", getattr(state, "penalty", ()))
    return out, diagnostics


def _local(params, axis_name):
    # What users write in their own step: the gradient of this device's shard.
    if axis_name is None or not jax.sharding.get_abstract_mesh().manual_axes:
        return params
    return jax.tree.map(lambda a: jax.lax.pcast(a, axis_name, to="varying"), params)


def in_shard_map(fn, mesh, check_vma):
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    )


@pytest.mark.parametrize("name", named(TRANSFORMS))
def test_same_update_everywhere(name, data, mesh):
    params, batch = data
    expected = jax.jit(lambda p, b: two_updates(TRANSFORMS[name](), p, b))(params, batch)
    single = flat(expected)
    # Sums over four shards in another order, in float32; noise and labels are the same draws.
    close = {"rtol": 2e-4, "atol": 2e-5}

    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    auto = jax.jit(lambda p, b: two_updates(TRANSFORMS[name](), p, b))(params, sharded)
    np.testing.assert_allclose(flat(auto), single, err_msg="jit with an Auto mesh", **close)

    tx = TRANSFORMS[name](axis_name="data")

    def local(params, batch):
        return two_updates(tx, params, batch, "data")

    # Without the check the program is that of pmap, one more compilation.
    for check_vma in (True, False) if name in ("sam", "fisher_penalty") else (True,):
        out = in_shard_map(local, mesh, check_vma)(params, batch)
        np.testing.assert_allclose(flat(out), single, err_msg=f"{check_vma=}", **close)


# pmap is jit(shard_map) in disguise: one of each kind suffices.
@pytest.mark.parametrize("name", named(["sam_8_groups", "fisher_penalty", "isgr"]))
def test_same_update_in_pmap(name, data):
    params, batch = data
    single = jax.jit(lambda p, b: two_updates(TRANSFORMS[name](), p, b))(params, batch)
    tx = TRANSFORMS[name](axis_name="data")
    shards = jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), batch)
    mapped = jax.pmap(
        lambda p, b: two_updates(tx, p, b, "data"), axis_name="data", in_axes=(None, 0)
    )(params, shards)
    for device in range(DEVICES):
        out = jax.tree.map(lambda a, d=device: np.asarray(a)[d], mapped)
        np.testing.assert_allclose(flat(out), flat(single), rtol=2e-4, atol=2e-5)


ORACLES = {
    "sam_second_order": lambda **k: ft.sam_value_and_grad(loss_fn, rho=0.3, second_order=True, **k),
    "sam_span": lambda **k: ft.sam_value_and_grad(loss_fn, rho=0.3, groups=2, **k),
    "sam_8_groups": lambda **k: ft.sam_value_and_grad(loss_fn, rho=0.3, groups=8, **k),
    "sam_accumulate": lambda **k: ft.sam_value_and_grad(loss_fn, rho=0.3, accumulate=2, **k),
    "penalty": lambda **k: ft.penalty_value_and_grad(loss_fn, coef=0.3, **k),
    "penalty_8_groups": lambda **k: ft.penalty_value_and_grad(loss_fn, coef=0.3, groups=8, **k),
}


@pytest.mark.parametrize("name", named(ORACLES))
def test_same_oracle_everywhere(name, data, mesh):
    params, batch = data
    single = flat(jax.jit(ORACLES[name]())(params, batch))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    outs = [jax.jit(ORACLES[name]())(params, sharded)]
    for check_vma in (True, False):
        oracle = ORACLES[name](axis_name="data")
        outs.append(in_shard_map(oracle, mesh, check_vma)(params, batch))
    for out in outs:
        np.testing.assert_allclose(flat(out), single, rtol=2e-4, atol=2e-5)


def weighted_loss(w, batch):
    """A mean over tokens that compiles fast, with a derivative of every order."""
    x, y, mask = batch
    return losses.Mean((mask * jnp.sin(x @ w - y)).sum(), mask.sum())


def weighted_sam(groups=1, accumulate=1):
    # Accumulation in place of devices: the second micro-batch and the second device are empty.
    return lambda devices: ft.sam_value_and_grad(
        weighted_loss, rho=0.3, groups=groups, accumulate=1 if devices else accumulate,
        axis_name=devices,
    )  # fmt: skip


WEIGHTED = {
    "sam": weighted_sam(accumulate=4),
    "span": weighted_sam(2, accumulate=2),
    "groups": weighted_sam(4),
    "local_groups": weighted_sam(8),
    "penalty": lambda devices: ft.penalty_value_and_grad(
        weighted_loss, coef=0.3, penalty_fn=weighted_loss, accumulate=1 if devices else 4,
        axis_name=devices,
    ),
}  # fmt: skip
LOSS = {"loss_fn": weighted_loss}
WEIGHTED_TRANSFORMS = {
    "sam": lambda **k: ft.sam(0.3, groups=2, diagnostics=True, **LOSS, **k),
    "isgr": lambda **k: ft.stochastic_implicit_gradient_regularization(
        0.3, micro_batches=2, **LOSS, **k
    ),
    "gradient": lambda **k: ft.gradient_noise(0.1, covariance="gradient", **LOSS, **k),
    "diagonal": lambda **k: ft.gradient_noise(0.1, covariance="diagonal", **LOSS, **k),
    "halves": lambda **k: ft.implicit_gradient_regularization(0.3, estimator="halves", **LOSS, **k),
}


def test_weights_of_a_mean_count_everywhere(mesh, x64):
    params, batch = jnp.array([0.3, -0.7, 0.2]), sequences(jnp.float64)[1]
    # Every device takes halves of its own, which are here the rows of even and of odd number.
    order = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])

    def run(params, batch, devices):
        out = {name: make(devices)(params, batch) for name, make in WEIGHTED.items()}
        zero = jnp.zeros(3)
        for name, make in WEIGHTED_TRANSFORMS.items():
            tx, data = make(axis_name=devices), batch
            if name in ("halves", "sam", "isgr"):  # with empty sequences beside others in a part
                data = (jnp.nan_to_num(batch[0]), *batch[1:])
            if name == "halves" and not devices:
                data = jax.tree.map(lambda a: a[order], data)
            out[name, "tx"], state = tx.update(zero, tx.init(params), params, batch=data)
            if name == "sam":
                out["gap"] = state.metrics.sharpness_gap
        return list(out.values())

    single = jax.jit(lambda p, b: run(p, b, None))(params, batch)
    sharded = in_shard_map(lambda p, b: run(p, b, "data"), mesh, True)(params, batch)
    for one, four in zip(single, sharded, strict=True):
        assert np.isfinite(flat(one)).all()
        assert_close(four, one)


def test_groups_on_local_gradients_alone(data, mesh):
    # As many groups as devices need no loss_fn: grad_fn is that of the group.
    params, batch = data
    expected = jax.jit(lambda p, b: two_updates(sam_groups(4)(), p, b))(params, batch)
    tx = ft.sam(0.3, groups=4, axis_name="data")
    out = in_shard_map(lambda p, b: two_updates(tx, p, b, "data"), mesh, True)(params, batch)
    np.testing.assert_allclose(flat(out), flat(expected), rtol=2e-4, atol=2e-5)


def test_groups_that_fit_no_device_count(data, mesh):
    tx = ft.sam(0.3, groups=6, loss_fn=loss_fn, axis_name="data")
    with pytest.raises(ValueError, match="must divide one another"):
        in_shard_map(lambda p, b: two_updates(tx, p, b, "data"), mesh, True)(*data)


EXPLICIT = {
    "sam": (ft.sam(0.3, second_order=True), None),
    "gradient_penalty": (ft.gradient_penalty(0.3), None),
    "looksam": (ft.looksam(0.3), None),
    "groups": (sam_groups(4)(), "Explicit mesh axes"),
    "fisher_penalty": (ft.fisher_penalty(model, XENT, coef=0.3), "Explicit mesh axes"),
    "input_gradient_penalty": (
        ft.input_gradient_penalty(model, XENT, coef=0.3),
        "Explicit mesh axes",
    ),
    "gradient_noise": (
        ft.gradient_noise(0.1, covariance="gradient", loss_fn=per_example),
        "Explicit mesh axes",
    ),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_meshes_work_or_say_what_to_do(name):
    # The default of make_mesh. Traced only: sharding in types decides at trace time.
    tx, message = EXPLICIT[name]
    explicit = jax.make_mesh((DEVICES,), ("data",))
    params, (x, y) = network(n=EXAMPLES)
    with jax.set_mesh(explicit):
        batch = jax.device_put((x, jax.nn.one_hot(y, 3)), NamedSharding(explicit, P("data")))
        params = jax.device_put(params, NamedSharding(explicit, P()))
        run = lambda p, b: two_updates(tx, p, b)  # noqa: E731
        if message is None:
            jax.eval_shape(run, params, batch)
        else:
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(run, params, batch)


def test_sub_batch_that_fits_no_device_count(data, mesh):
    tx = ft.fisher_penalty(model, XENT, coef=0.3, sub_batch=6, axis_name="data")
    with pytest.raises(ValueError, match="sub_batch=6 is not divisible by the 4 devices"):
        in_shard_map(lambda p, b: two_updates(tx, p, b, "data"), mesh, True)(*data)


@pytest.mark.slow
def test_averaging_twice_changes_nothing(data, mesh):
    # Two heads with axis_name in one chain: the second sees what is already averaged.
    import optax

    params, batch = data
    plain = optax.chain(ft.sam(0.3), ft.gradient_noise(0.0))
    both = optax.chain(ft.sam(0.3, axis_name="data"), ft.gradient_noise(0.0, axis_name="data"))
    expected = jax.jit(lambda p, b: two_updates(plain, p, b))(params, batch)
    out = in_shard_map(lambda p, b: two_updates(both, p, b, "data"), mesh, True)(params, batch)
    np.testing.assert_allclose(flat(out), flat(expected), rtol=2e-4, atol=2e-5)


def test_one_reduction_of_the_gradient_a_group(data, mesh):
    # m-SAM with a group a device needs the mean of the result only; SAM the perturbation too.
    params, batch = data

    def reduced(groups):
        oracle = ft.sam_value_and_grad(loss_fn, rho=0.3, groups=groups, axis_name="data")
        text = in_shard_map(oracle, mesh, True).lower(params, batch).compile().as_text()
        # Leaves of the largest weight, summed over devices.
        return sum(
            line.count("all-reduce(") and "f32[3,4]" in line.split("all-reduce(")[0]
            for line in text.splitlines()
        )

    assert reduced(groups=4) == 1
    assert reduced(groups=1) == 2
    assert jnp.isfinite(flat(params)).all()
