"""Data parallel: one device, a sharded jit, shard_map in both modes and pmap give one product."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flatjax
from tests.models import NETWORKS, attention, mlp
from tests.operators import references

# float64 sums of eight terms in another order: some 1e-16; 1e-10 is the promise.
TOLERANCE = 1e-10
# Two examples a device; the second device has nothing but padding.
WEIGHTS = np.array([1.0, 0.5, 0.0, 0.0, 2.0, 1.0, 0.0, 1.0])


def auto_mesh(*shape, names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def products(params, batch, weights, *, apply=mlp, axis_name=None, kinds=references.OPERATORS):
    """Every operator times the params, plain and linearised, by name."""
    found = {}
    for kind in kinds:
        op = references.make(kind, apply, params, batch, weights=weights, axis_name=axis_name)
        found[kind] = op.mv(params)
        found[f"{kind} linearized"] = op.linearize().mv(params)
    return found


def on_one_device(*args):
    return jax.jit(products)(*args)


def sharded_jit(params, batch, weights):
    mesh = auto_mesh(4)
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    put = jax.device_put
    return jax.jit(products)(put(params, whole), put(batch, split), put(weights, split))


def in_shard_map(params, batch, weights, *, check_vma, mesh=None, axis_name="data", **options):
    body = functools.partial(products, axis_name=axis_name, **options)
    mapped = jax.shard_map(
        body,
        mesh=auto_mesh(4) if mesh is None else mesh,
        in_specs=(P(), P(axis_name), P(axis_name)),
        out_specs=P(),
        check_vma=check_vma,
    )
    return jax.jit(mapped)(params, batch, weights)


def in_pmap(params, batch, weights):
    split = lambda tree: jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), tree)  # noqa: E731
    body = functools.partial(products, axis_name="data")
    mapped = jax.pmap(body, axis_name="data", in_axes=(None, 0, 0))
    found = mapped(params, split(batch), split(weights))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    return jax.tree.map(lambda a: a[0], found)


def wanted(name, weights):
    """The products of the dense references, with the draws of one device."""
    network = NETWORKS[name]
    params, batch = network.cast()
    v = np.asarray(ravel_pytree(params)[0])
    draws = references.make("fisher_sampled", network.apply, params, batch).draws
    ref = references.reference(name)
    return {kind: references.dense(kind, ref, weights, draws) @ v for kind in references.OPERATORS}


def check(found, name, weights):
    expected = wanted(name, weights)
    for key, product in found.items():
        flat = np.asarray(ravel_pytree(jax.device_get(product))[0])
        references.assert_close(flat, expected[key.split()[0]], TOLERANCE)


checked = functools.partial(in_shard_map, check_vma=True)
unchecked = functools.partial(in_shard_map, check_vma=False)


RUNS = {
    "one_device": on_one_device,
    "jit": sharded_jit,
    "shard_map": checked,
    "shard_map_unchecked": unchecked,
    "pmap": in_pmap,
}
# tests/parallel has a padded batch of each, test_weighting.py one device.
FAST = {("shard_map", None), ("shard_map_unchecked", "padded"), ("pmap", "padded")}


@pytest.mark.parametrize(
    ("run", "weights"),
    [
        pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(RUNS, (None, "padded"))
    ],
)
def test_one_product(run, weights, x64):
    params, batch = NETWORKS["mlp"].cast()
    values = None if weights is None else WEIGHTS
    check(RUNS[run](params, batch, values), "mlp", values)


@pytest.mark.parametrize(
    "kinds",
    [("ggn", "covariance"), pytest.param(references.OPERATORS, marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_sequences_of_unequal_lengths(kinds, x64):
    params, batch = NETWORKS["attention"].cast()
    check(checked(params, batch, None, apply=attention, kinds=kinds), "attention", None)


def test_a_batch_split_over_two_mesh_axes(x64):
    params, batch = NETWORKS["mlp"].cast()
    mesh = auto_mesh(2, 2, names=("rows", "columns"))
    found = in_shard_map(
        params,
        batch,
        WEIGHTS,
        check_vma=True,
        mesh=mesh,
        axis_name=("rows", "columns"),
        kinds=("ggn", "fisher_sampled", "covariance"),
    )
    check(found, "mlp", WEIGHTS)


def test_mean_losses(x64):
    # A scalar loss is the mean over a device's examples: devices count by their examples.
    params, batch = NETWORKS["mlp"].cast()
    losses_fn = references.losses_fn(mlp)
    mean_loss = lambda p, b: losses_fn(p, b).mean()  # noqa: E731

    def body(params, batch):
        return flatjax.hessian(mean_loss, params, batch, axis_name="data").mv(params)

    mesh = auto_mesh(4)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    check({"hessian": jax.jit(mapped)(params, batch)}, "mlp", None)


def test_the_axis_of_vmap(x64):
    params, (x, y) = NETWORKS["mlp"].cast()
    parts = x.reshape(4, 2, -1), y.reshape(4, 2)

    def body(batch):
        return {
            kind: references.make(kind, mlp, params, batch, axis_name="parts").mv(params)
            for kind in ("hessian", "ggn", "covariance")
        }

    found = jax.jit(jax.vmap(body, axis_name="parts"))(parts)
    check(jax.tree.map(lambda a: a[0], found), "mlp", None)
    check(jax.tree.map(lambda a: a[3], found), "mlp", None)


def test_per_token_losses_count_tokens(x64):
    params, batch = NETWORKS["attention"].cast()
    loss = flatjax.softmax_cross_entropy(per="token")

    def body(params, batch, axis_name):
        return flatjax.ggn(attention, loss, params, batch, axis_name=axis_name).mv(params)

    mapped = jax.shard_map(
        functools.partial(body, axis_name="data"),
        mesh=auto_mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    found, alone = (
        ravel_pytree(f(params, batch))[0]
        for f in (jax.jit(mapped), functools.partial(body, axis_name=None))
    )
    references.assert_close(found, np.asarray(alone), TOLERANCE)


class TestLinearHead:
    """Two of the four devices share the sequences, and two the classes."""

    mesh = staticmethod(lambda: auto_mesh(2, 2, names=("data", "model")))
    split = property(lambda _: {"hidden": P(), "out": P(None, "model")})

    def problem(self):
        key = jax.random.split(jax.random.key(0), 3)
        params = {
            "hidden": jax.random.normal(key[0], (5, 4)),
            "out": jax.random.normal(key[1], (4, 6)),
        }
        x, ids = jax.random.normal(key[2], (4, 3, 5)), jnp.arange(12).reshape(4, 3) % 6
        return params, (x, ids.at[3, 1:].set(-1))

    def product(self, params, batch, axis_name=None):
        def model(p, x):
            return flatjax.losses.LinearHead(jnp.tanh(x @ p["hidden"]), p["out"], None, 2)

        loss = flatjax.softmax_cross_entropy(per="token")
        mean = lambda p, b: loss.mean(model(p, b[0]), b[1])  # noqa: E731
        given = {"axis_name": axis_name}
        return [
            flatjax.ggn(model, loss, params, batch, **given).mv(params),
            flatjax.hessian(mean, params, batch, **given).mv(params),
        ]

    @pytest.mark.parametrize("split", ["jit", "classes", "sequences"])
    def test_the_product_of_one_device(self, split, x64):
        params, batch = self.problem()
        wanted, mesh = jax.jit(self.product)(params, batch), self.mesh()
        if split != "sequences":
            params = {
                k: jax.device_put(a, NamedSharding(mesh, self.split[k])) for k, a in params.items()
            }
        if split == "jit":
            found = jax.jit(self.product)(
                params, jax.device_put(batch, NamedSharding(mesh, P("data")))
            )
        else:
            body = functools.partial(self.product, axis_name="data")
            mapped = jax.shard_map(
                body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), axis_names={"data"}
            )
            found = jax.jit(mapped)(params, batch)
        references.assert_close(
            ravel_pytree(jax.device_get(found))[0], ravel_pytree(wanted)[0], TOLERANCE
        )

    def test_classes_split_by_hand_are_an_error(self):
        params, batch = self.problem()
        body = functools.partial(self.product, axis_name="data")
        specs = (self.split, P("data"))
        mapped = jax.shard_map(body, mesh=self.mesh(), in_specs=specs, out_specs=[self.split] * 2)
        with pytest.raises(ValueError, match=r"split over the mesh axes \['model'\] of shard_map"):
            jax.jit(mapped)(params, batch)


class TestExplicitMesh:
    """``jax.make_mesh`` makes Explicit axes unless told otherwise."""

    text = r"split over the Explicit mesh axes \('data',\).*build the mesh with.*AxisType.Auto"

    def batch(self):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
        params, batch = NETWORKS["mlp"].cast(jnp.float32)
        return mesh, params, jax.device_put(batch, NamedSharding(mesh, P("data")))

    @pytest.mark.parametrize("kind", references.OPERATORS)
    def test_a_split_batch_is_an_error(self, kind):
        _, params, batch = self.batch()
        with pytest.raises(ValueError, match=self.text):
            references.make(kind, mlp, params, batch)

    def test_within_the_mesh_too(self):
        mesh, params, batch = self.batch()
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=self.text):
            references.make("hessian", mlp, params, batch)

    def test_per_example_gradients(self):
        _, params, batch = self.batch()
        with pytest.raises(ValueError, match=self.text):
            flatjax.per_example_gradients(references.losses_fn(mlp), params, batch)

    def test_inside_shard_map_it_works(self):
        mesh, params, batch = self.batch()

        def body(params, batch):
            return references.make("covariance", mlp, params, batch, axis_name="data").mv(params)

        with jax.set_mesh(mesh):
            mapped = jax.shard_map(body, in_specs=(P(), P("data")), out_specs=P())
            found = jax.jit(mapped)(params, batch)
        flat = np.asarray(ravel_pytree(jax.device_get(found))[0])
        v = np.asarray(ravel_pytree(NETWORKS["mlp"].params)[0])
        matrix = references.dense("covariance", references.reference("mlp"))
        references.assert_close(flat, matrix @ v, references.FLOAT32)


@pytest.mark.parametrize("check_vma", [True, False])
def test_per_example_gradients_are_of_single_examples(check_vma):
    """With replicated params too, whose gradients JAX would sum over the devices."""
    losses_fn = lambda w, x: jnp.tanh(x @ w)  # noqa: E731
    w, x = jnp.ones(3), jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    run = jax.shard_map(
        functools.partial(flatjax.per_example_gradients, losses_fn),
        mesh=auto_mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    expected = flatjax.per_example_gradients(losses_fn, w, x)
    # 1e-6: a few roundings.
    np.testing.assert_allclose(jax.jit(run)(w, x), expected, rtol=0, atol=1e-6)
