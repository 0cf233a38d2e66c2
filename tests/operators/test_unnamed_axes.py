"""A batch that varies over a mesh axis which nobody names is an error that names it."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax

X, Y = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32), jnp.arange(8) % 2
W, LOSS = jnp.ones((3, 2)), flatjax.softmax_cross_entropy
KEY = jax.random.key(0)


def model(w, x, *args):
    return sum((a.sum() for a in args), x @ w)


def losses_fn(w, batch, *args):
    return LOSS(model(w, batch[0], *args), batch[1])


def named(name, *args, **kwargs):
    """A public function of ``(params, batch, *args, axis_name=, weights=)``."""
    found = getattr(flatjax, name, None) or getattr(flatjax.measures, name)
    return functools.partial(found, *args, **kwargs)


def along_an_update(w, batch, *args, **options):
    return flatjax.critical_sharpness(losses_fn, w, batch, *args, update=w, **options)


def with_positions(w, batch, *args, **options):
    return flatjax.loss_along(losses_fn, w, batch, *args, direction=w, positions=[0.0], **options)


def to_the_opposite(w, batch, *args, **options):
    return flatjax.barrier(losses_fn, w, -w, batch, *args, num_points=3, **options)


def on_a_surface(w, batch, *args, **options):
    directions = {"first": w, "second": w.at[0].set(0.0), "positions": [0.0]}
    return flatjax.loss_surface(losses_fn, w, batch, *args, **directions, **options)


def on_a_chain(w, batch, *args, **options):
    curve = flatjax.chain([w, -w])
    return flatjax.loss_on_curve(losses_fn, curve, batch, *args, positions=[0.0, 1.0], **options)


def of_a_curvature(w, batch, *args, **options):
    return flatjax.curvature_gradient(losses_fn, w, w, w, batch, *args, **options)


ENTRIES = {
    "hessian": named("hessian", losses_fn),
    "ggn": named("ggn", model, LOSS),
    "exact": named("fisher", model, LOSS),
    "sampled": named("fisher", model, LOSS, kind="sampled", key=KEY),
    "empirical": named("fisher", model, LOSS, kind="empirical"),
    "gradient_covariance": named("gradient_covariance", losses_fn),
    "gradient_gram": named("gradient_gram", losses_fn),
    "gram_eigh": named("gram_eigh", losses_fn),
    "gradient_noise_scale": named("gradient_noise_scale", losses_fn),
    "stiffness": named("stiffness", losses_fn, num_classes=1),
    "gradient_confusion": named("gradient_confusion", losses_fn),
    "hessian_variance": named("hessian_variance", losses_fn),
    "linear_stability": named(
        "linear_stability", losses_fn, learning_rate=0.1, batch_size=1, key=KEY
    ),
    "average_sharpness": named("average_sharpness", losses_fn, sigma=0.1, key=KEY),
    "sam_sharpness": named("sam_sharpness", losses_fn, rho=0.1),
    "eps_sharpness": named("eps_sharpness", losses_fn),
    "critical_sharpness": along_an_update,
    "pac_bayes_flatness": named("pac_bayes_flatness", losses_fn, key=KEY),
    "fisher_rao_norm": named("fisher_rao_norm", model, LOSS),
    "loss_along": with_positions,
    "barrier": to_the_opposite,
    "loss_surface": on_a_surface,
    "loss_on_curve": on_a_chain,
    "curvature_gradient": of_a_curvature,
    "log_volume": named("log_volume", losses_fn, key=KEY, threshold=5.0, num_directions=2),
}
OWN = {"loss_along", "critical_sharpness", "barrier", "loss_surface", "loss_on_curve"}
OWN |= {"curvature_gradient"}


def inside(body, *args, specs, mesh=None, check_vma=True):
    mesh = mesh or jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    run = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    return jax.eval_shape(run, *args)


def zero(entry, w, batch, *args, **options):
    """Only whether it raises is looked at."""
    entry(w, batch, *args, **options)
    return jnp.zeros(())


@pytest.mark.parametrize("name", ENTRIES)
def test_the_batch(name):
    entry = ENTRIES[name]
    body = functools.partial(zero, entry)
    with pytest.raises(ValueError, match=r"vary over the mesh axes 'data'.*axis_name='data'"):
        inside(body, W, (X, Y), specs=(P(), P("data")))


def mean_loss(w, batch):
    return losses_fn(w, batch).mean()


def of_oracle(make, w, batch):
    return make(mean_loss)(w, batch)


def of_update(tx, w, batch):
    return tx.update(w, tx.init(w), w, batch=batch)


UPDATES = {
    "fisher_penalty": flatjax.fisher_penalty(model, LOSS, coef=0.1),
    "halves": flatjax.implicit_gradient_regularization(0.1, loss_fn=mean_loss, estimator="halves"),
    "micro_batches": flatjax.stochastic_implicit_gradient_regularization(
        0.1, loss_fn=mean_loss, micro_batches=2
    ),
    "gradient_noise": flatjax.gradient_noise(0.1, covariance="gradient", loss_fn=losses_fn),
    "label_noise": flatjax.label_noise(model, LOSS, scale=0.1),
    "groups": flatjax.sam(groups=2, loss_fn=mean_loss, check=False),
}
ENTRIES_OF_TRANSFORMS = {
    "sam_value_and_grad": functools.partial(
        of_oracle, lambda f: flatjax.sam_value_and_grad(f, rho=0.1)
    ),
    "penalty_value_and_grad": functools.partial(
        of_oracle, lambda f: flatjax.penalty_value_and_grad(f, coef=0.1)
    ),
    **{name: functools.partial(of_update, tx) for name, tx in UPDATES.items()},
}


@pytest.mark.parametrize("name", ENTRIES_OF_TRANSFORMS)
def test_the_batch_of_a_transform(name):
    body = functools.partial(zero, ENTRIES_OF_TRANSFORMS[name])
    with pytest.raises(ValueError, match=r"vary over the mesh axes 'data'.*axis_name='data'"):
        inside(body, W, (X, Y), specs=(P(), P("data")))


@pytest.mark.parametrize("name", ["hessian", "ggn", "sampled", "gradient_covariance", "loss_along"])
def test_arguments_and_weights(name):
    entry, text = ENTRIES[name], r"vary over the mesh axes 'data'"
    with pytest.raises(ValueError, match=text):
        inside(
            lambda w, b, a: zero(entry, w, b, a), W, (X, Y), jnp.ones(4),
            specs=(P(), P(), P("data")),
        )  # fmt: skip
    with pytest.raises(ValueError, match=text):
        inside(
            lambda w, b, a: zero(entry, w, b, weights=a), W, (X[:2], Y[:2]), jnp.ones(8),
            specs=(P(), P(), P("data")),
        )  # fmt: skip


def test_one_of_two_axes():
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), (AxisType.Auto,) * 2)
    body = lambda w, b: zero(ENTRIES["hessian"], w, b, axis_name="rows")  # noqa: E731
    specs = P(), P(("rows", "columns"))
    with pytest.raises(ValueError, match="over the mesh axes 'columns', which"):
        inside(body, W, (X, Y), specs=specs, mesh=mesh)


def test_params_that_vary_have_an_answer_each():
    """An ensemble with data of its own on every device, and params cast on purpose."""
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    many = jnp.stack([W, 2 * W, 3 * W, 4 * W])
    parts = X.reshape(4, 2, 3), Y.reshape(4, 2)

    def member(w, x, y):
        return flatjax.hessian(losses_fn, w[0], (x, y)).mv(W)[None]

    split = (P("data"),) * 3
    run = jax.shard_map(member, mesh=mesh, in_specs=split, out_specs=P("data"))
    found = jax.jit(run)(many, X, Y)
    for i in range(4):
        alone = flatjax.hessian(losses_fn, many[i], (parts[0][i], parts[1][i])) @ W
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)

    def cast(x, y):
        w = jax.lax.pcast(W, "data", to="varying")
        return flatjax.hessian(losses_fn, w, (x, y)).mv(W)[None]

    run = jax.shard_map(cast, mesh=mesh, in_specs=split[:2], out_specs=P("data"))
    alone = flatjax.hessian(losses_fn, W, (parts[0][3], parts[1][3])) @ W
    np.testing.assert_allclose(jax.jit(run)(X, Y)[3], alone, rtol=1e-5, atol=1e-6)


def test_a_tree_of_which_one_leaf_varies():
    """JAX would add up the derivative of the other."""

    def body(w, b, x, y):
        loss = lambda p, batch: losses_fn(p[0] + p[1], batch)  # noqa: E731
        flatjax.hessian(loss, (w, b), (x, y))
        return jnp.zeros(())

    with pytest.raises(ValueError, match="vary over the mesh axes 'data'"):
        inside(body, W, jnp.zeros((12, 2)), X, Y, specs=(P(), P("data"), P("data"), P("data")))


def test_a_batch_that_is_the_same_everywhere_needs_no_name():
    inside(lambda w, b: zero(ENTRIES["hessian"], w, b), W, (X, Y), specs=(P(), P()))


def test_unchecked_and_in_pmap_it_cannot_be_known():
    """Then a product is that of the device's own examples: documented, and no sum here."""
    body = lambda w, b: ENTRIES["hessian"](w, b).mv(W)  # noqa: E731
    own = ENTRIES["hessian"](W, (X[:2], Y[:2])) @ W
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    run = jax.shard_map(
        lambda w, b: body(w, b)[None],
        mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False,
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(run)(W, (X, Y))[0], own, rtol=1e-5, atol=1e-6)
    split = X.reshape(4, 2, 3), Y.reshape(4, 2)
    found = jax.pmap(body, axis_name="data", in_axes=(None, 0))(W, split)
    np.testing.assert_allclose(found[0], own, rtol=1e-5, atol=1e-6)


def test_every_entry_with_an_axis_name_is_here():
    """A new public function that takes ``axis_name=`` and data is listed above."""
    found = set()
    for name in dir(flatjax):
        value = getattr(flatjax, name)
        if inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            if "axis_name" in parameters and "batch" in parameters:
                found.add(name)
    covered = {e.func.__name__ for e in ENTRIES.values() if hasattr(e, "func")}
    assert found - covered == OWN  # by functions of their own


def shifted(by):
    """A model and losses that capture what varies."""
    net = lambda w, x: model(w, x + by)  # noqa: E731
    return net, lambda w, batch: LOSS(net(w, batch[0]), batch[1])


CAPTURING = {
    "hessian": lambda net, fn, *data: flatjax.hessian(fn, *data),
    "ggn": lambda net, fn, *data: flatjax.ggn(net, LOSS, *data),
    "gradient_covariance": lambda net, fn, *data: flatjax.gradient_covariance(fn, *data),
    "sam_sharpness": lambda net, fn, *data: flatjax.sam_sharpness(fn, *data, rho=0.1),
    "sam_value_and_grad": lambda net, fn, *data: flatjax.sam_value_and_grad(
        lambda w, b: fn(w, b).mean(), rho=0.1
    )(*data),
}


@pytest.mark.parametrize("name", CAPTURING)
def test_what_a_function_captures(name):
    def body(w, batch, part):
        CAPTURING[name](*shifted(part[0].sum()), w, batch)
        return jnp.zeros(())

    specs = (P(), P(), P("data"))
    with pytest.raises(ValueError, match=r"captures, what varies over the mesh axes 'data'"):
        inside(body, W, (X, Y), X[:4], specs=specs)


REDUCING = {
    "hessian": lambda fn, *data: flatjax.hessian(fn, *data, axis_name="data"),
    "sam_sharpness": lambda fn, *data: flatjax.sam_sharpness(fn, *data, rho=0.1, axis_name="data"),
    "sam_value_and_grad": lambda fn, *data: flatjax.sam_value_and_grad(
        fn, rho=0.1, axis_name="data"
    )(*data),
}


@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("reduce", [jax.lax.pmean, jax.lax.psum])
def test_a_loss_that_adds_up_over_a_named_axis_itself(name, reduce):
    """It would be averaged twice: 1 / 4 of the answer."""

    def body(w, batch):
        REDUCING[name](lambda w, b: reduce(losses_fn(w, b).mean(), "data"), w, batch)
        return jnp.zeros(())

    with pytest.raises(ValueError, match=r"adds up over the mesh axis 'data' itself"):
        inside(body, W, (X, Y), specs=(P(), P("data")))
    inside(body, W, (X, Y), specs=(P(), P("data")), check_vma=False)  # where it is right


def test_statistics_of_all_devices_inside_of_a_loss_are_no_such_sum():
    def centred(w, batch):
        x, y = batch
        return losses_fn(w, (x - jax.lax.pmean((x @ w).mean(), "data"), y)).mean()

    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    body = lambda w, b: flatjax.hessian(centred, w, b, axis_name="data").mv(W)  # noqa: E731
    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    whole = flatjax.hessian(
        lambda w, b: losses_fn(w, (b[0] - (b[0] @ w).mean(), b[1])).mean(), W, (X, Y)
    )
    np.testing.assert_allclose(run(W, (X, Y)), whole @ W, rtol=1e-4, atol=1e-6)
