"""Bad arguments of the factories are errors at the door, with the fix in the text."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flatjax

X, Y, W = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), {"w": jnp.ones((3, 2))}


def model(params, x):
    return x @ params["w"]


def losses_fn(params, batch):
    return flatjax.softmax_cross_entropy(model(params, batch[0]), batch[1])


LOSS = flatjax.softmax_cross_entropy
FACTORIES = {
    "hessian": functools.partial(flatjax.hessian, losses_fn),
    "ggn": functools.partial(flatjax.ggn, model, LOSS),
    "fisher": functools.partial(flatjax.fisher, model, LOSS),
    "gradient_covariance": functools.partial(flatjax.gradient_covariance, losses_fn),
}


@pytest.fixture(params=FACTORIES)
def make(request):
    return FACTORIES[request.param]


class Loader:
    """Made anew by every loop over it, like a data loader."""

    def __iter__(self):
        return iter([(X, Y)])


class Tensor:
    """Looks like an array, and is another library's."""

    shape, dtype = (4, 3), "torch.float32"


IDS = np.array(["a"] * 4)
NOT_PARAMS = {
    "integers": (
        jnp.ones(2, jnp.int32),
        r"\['b'\] must be .* got dtype int32: pass counters, keys",
    ),
    "flags": (jnp.array([True]), "must be a real floating array, got dtype bool"),
    "a key": (jax.random.key(0), r"got dtype key<fry>: pass counters, keys and model"),
    "a number": (1.0, "must be a real floating array, got float: pass counters, keys"),
    "a flag": (True, "got bool: pass counters, keys and model state"),
    "text": ("text", r"params\['b'\] is text \('text'\): leave it out"),
    "complex": (1j * jnp.ones(2), "got dtype complex64: pass the real and the imaginary part as"),
    "a function": (
        lambda x: x,
        r"got function: split.*equinox.partition\(model, equinox.is_inexac",
    ),
    "an activation": (jax.nn.relu, "got custom_jvp: split the functions off"),
    "a tensor": (Tensor(), r"params\[.*Tensor, no array of JAX: convert it.*tensor.detach"),
}


def test_the_variables_of_a_module_are_no_params():
    variables = {"params": W, "batch_stats": {"mean": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"batch_stats are no parameters: pass variables\['params"):
        flatjax.hessian(lambda v, batch: LOSS(model(v["params"], batch[0]), batch[1]), variables, 0)


NOT_BATCHES = {
    "a tensor": ((Tensor(), Y), TypeError, r"batch\[.*Tensor, no array of JAX: convert it"),
    "text": (({"x": X, "id": IDS}, Y), TypeError, "dtype <U1, which JAX cannot hold: leave text"),
    "objects": (({"x": X, "id": IDS.astype(object)}, Y), TypeError, "dtype object, which JAX"),
    "words": (
        ({"x": X, "id": list("abcd")}, Y),
        TypeError,
        r"\['id'\]\[0\] is text \('a'\): leave",
    ),
    "no example": ((X[:0], Y[:0]), ValueError, "batch is empty: it needs at least one example"),
    "a scalar": (
        (X, jnp.float32(1)),
        ValueError,
        r"batch\[1\] has no leading example axis: pass v",
    ),
    "unequal axes": (
        (X, Y[:3]),
        ValueError,
        r"share a leading axis, got \{'\[0\]': 4, '\[1\]': 3\}",
    ),
    "sets": (
        (X, Y[:3]),
        ValueError,
        r"unequal sizes.*go through \*args with batch=None: loss_fn\(p",
    ),
}
LOADERS = {
    "a generator": lambda: ((X, Y) for _ in range(2)),
    "an iterator": lambda: iter([(X, Y)]),
    "a loader": lambda: Loader(),
    "a loader of inputs": lambda: (Loader(), Y),
}
NOT_OPTIONS = {
    "complex weights": (
        {"weights": 1j * jnp.ones(4)},
        TypeError,
        "weights must be real numbers or",
    ),
    "axis_name": (
        {"axis_name": ["data"]},
        TypeError,
        "axis_name must be a name or a tuple of names",
    ),
    "precision": (
        {"precision": "best"},
        ValueError,
        "precision must be one of .*'highest'.*'best'",
    ),
}


class TestEveryFactory:
    @pytest.mark.parametrize("params", [{}, {"w": jnp.zeros((0, 2))}])
    def test_no_params(self, make, params):
        with pytest.raises(ValueError, match="params has no entries: pass a pytree of floating"):
            make(params, (X, Y))

    @pytest.mark.parametrize("name", NOT_PARAMS)
    def test_among_the_params(self, make, name):
        leaf, text = NOT_PARAMS[name]
        with pytest.raises(TypeError, match=text):
            make({"b": leaf, "w": W["w"]}, (X, Y))

    def test_swapped_arguments(self, make):
        with pytest.raises(TypeError, match="params is a function: the order is"):
            make(lambda p, b: 0.0, (X, Y))

    @pytest.mark.parametrize("name", NOT_BATCHES)
    def test_batches(self, make, name):
        batch, error, text = NOT_BATCHES[name]
        with pytest.raises(error, match=text):
            make(W, batch)

    @pytest.mark.parametrize("name", LOADERS)
    def test_what_is_to_be_iterated_over(self, make, name):
        with pytest.raises(TypeError, match=r"take one of its batches.*flatjax\.over_batches\(lam"):
            make(W, LOADERS[name]())

    @pytest.mark.parametrize("sizes", [(4, 4), (4, 3), (4, 4, 4)])
    def test_a_list_of_batches(self, make, sizes):
        batches = [(X[:n], Y[:n]) for n in sizes]
        with pytest.raises((TypeError, ValueError), match=r"batches see flatjax\.over_batches"):
            make(W, batches)

    @pytest.mark.parametrize("leaf", [1.0, True, "text", Tensor(), lambda x: x])
    def test_params_of_one_leaf(self, make, leaf):
        with pytest.raises(
            TypeError, match=r"^params\['w'\] (must be a real|is text|is a .*Tensor)"
        ):
            make({"w": leaf}, (X, Y))

    @pytest.mark.parametrize("left_out", [False, True])
    def test_params_that_are_called_as_the_model(self, left_out):
        """What equinox's filter leaves, and the state of flax.nnx: in every factory."""
        if left_out:
            net = eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
            text = r"what eqx.filter left out is None.*Write params, static = eqx.partition\(model"
        else:
            net = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)[1]
            text = r"a flax.nnx.State, which is no model.*Write graph, params, rest = flax.nnx.sp"
        apply = lambda net, x: jax.vmap(net)(x)  # noqa: E731
        loss = lambda net, batch: LOSS(apply(net, batch[0]), batch[1])  # noqa: E731
        for what, factory in {
            "loss_fn": functools.partial(flatjax.hessian, loss),
            "loss_fn ": functools.partial(flatjax.gradient_covariance, loss),
            "model_fn": functools.partial(flatjax.ggn, apply, LOSS),
            "model_fn ": functools.partial(flatjax.fisher, apply, LOSS),
        }.items():
            with pytest.raises(TypeError, match=rf"(?s)^{what.strip()} is called with.*{text}"):
                factory(net, (X, Y))

    @pytest.mark.parametrize("factory", [flatjax.ggn, flatjax.fisher])
    def test_the_output_loss_before_the_model(self, factory):
        with pytest.raises(
            TypeError, match=r"model_fn is the output loss .*\(model_fn, loss, para"
        ):
            factory(LOSS, model, W, (X, Y))

    @pytest.mark.parametrize("shape", [(3,), (4, 1), (4, 4), ()])
    def test_weights_of_another_shape(self, make, shape):
        with pytest.raises(ValueError, match=r"weights must have one entry an example.*\(4,\)"):
            make(W, (X, Y), weights=jnp.ones(shape))

    @pytest.mark.parametrize("name", NOT_OPTIONS)
    def test_options(self, make, name):
        options, error, text = NOT_OPTIONS[name]
        with pytest.raises(error, match=text):
            make(W, (X, Y), **options)

    def test_an_axis_that_is_not_bound(self, make):
        op = make(W, (X, Y), axis_name="data")
        with pytest.raises(NameError, match="unbound axis name: data"):
            op @ W

    def test_weights_of_every_kind(self, make):
        products = [
            make(W, (X, Y), weights=weights) @ W
            for weights in (
                [1, 1, 0, 1],
                np.array([1, 1, 0, 1]),
                jnp.array([True, True, False, True]),
                jnp.array([1.0, 1.0, 0.0, 1.0]),
            )
        ]
        for product in products[1:]:
            np.testing.assert_array_equal(product["w"], products[0]["w"])


@pytest.mark.parametrize("factory", [flatjax.hessian, flatjax.gradient_covariance])
class TestLossFunctions:
    def test_no_function(self, factory):
        with pytest.raises(TypeError, match="loss_fn must be a function, got dict"):
            factory(W, W, (X, Y))

    def test_swapped_with_the_params(self, factory):
        with pytest.raises(TypeError, match=r"params is a function: the order is \(function, par"):
            factory(W, losses_fn, (X, Y))

    @pytest.mark.parametrize("flag", [True, "train", 4])
    def test_a_flag_as_further_argument(self, factory, flag):
        def loss_fn(params, batch, train):
            losses = losses_fn(params, batch)
            if flag == 4:
                return losses.reshape(train)
            return losses if train else 0 * losses

        text = rf"loss_fn looks at the value of a further argument \({flag!r} is one\).*bind flags"
        with pytest.raises(TypeError, match=text):
            factory(loss_fn, W, (X, Y), flag)

    def test_a_flag_that_is_a_number_is_one(self, factory):
        scaled = lambda p, b, on: jnp.where(on, 2.0, 1.0) * losses_fn(p, b)  # noqa: E731
        product = factory(scaled, W, (X, Y), True) @ W
        assert np.isfinite(product["w"]).all()

    def test_a_batch_in_another_order(self, factory):
        """JAX's own message, with what the function was called with."""
        with pytest.raises((TypeError, ValueError)) as caught:
            factory(losses_fn, W, (Y, X))
        assert (
            "loss_fn was called with params, batch, where batch has the shapes ((4,), (4, 3))"
            in ("".join(caught.value.__notes__))
        )

    def test_unhashable(self, factory):
        class Unhashable:
            __hash__ = None

            def __call__(self, params, batch):
                return losses_fn(params, batch)

        expected = factory(losses_fn, W, (X, Y)) @ W
        chex.assert_trees_all_equal(factory(Unhashable(), W, (X, Y)) @ W, expected)

    @pytest.mark.parametrize("out", [lambda p, b: (losses_fn(p, b), {}), lambda p, b: b[1]])
    def test_auxiliary_and_integer_outputs(self, factory, out):
        with pytest.raises(TypeError, match=r"loss_fn must return one real floating array.*drop"):
            factory(out, W, (X, Y))

    @pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
    def test_another_shape(self, factory, shape):
        text = r"loss_fn must return a scalar or one value per example, shape \(4,\), got"
        with pytest.raises(ValueError, match=text):
            factory(lambda p, b: jnp.broadcast_to(p["w"].sum(), shape), W, (X, Y))


class TestHessian:
    def test_weights_beside_a_mean_loss(self):
        mean_loss = lambda p, b: losses_fn(p, b).mean()  # noqa: E731
        with pytest.raises(ValueError, match="weights need per-example losses"):
            flatjax.hessian(mean_loss, W, (X, Y), weights=jnp.ones(4))

    def test_a_loss_without_data(self):
        H = flatjax.hessian(lambda w, _: (w**4).sum() / 12, jnp.arange(3.0), None)
        np.testing.assert_array_equal(H.to_dense(), np.diag([0.0, 1.0, 4.0]))
        with pytest.raises(ValueError, match="weights must have one entry an example"):
            flatjax.hessian(lambda w, _: (w**4).sum(), jnp.ones(3), None, weights=jnp.ones(3))


@pytest.mark.parametrize("factory", [flatjax.ggn, flatjax.fisher])
class TestModels:
    @pytest.mark.parametrize(
        ("model_fn", "loss", "batch", "error", "text"),
        [
            (W, LOSS, (X, Y), TypeError, "model_fn must be a function, got dict"),
            (
                model,
                "text",
                (X, Y),
                TypeError,
                "loss must be an output loss such as flatjax.softmax",
            ),
            (lambda p, x: (x, {}), LOSS, (X, Y), TypeError, "must return one real floating.*drop"),
            (lambda p, x: x[:3], LOSS, (X, Y), ValueError, r"one row an example.*got shape \(3"),
            (model, LOSS, (X, None), TypeError, "targets are None: pass an array"),
            (model, LOSS, (X, Y[:, None]), ValueError, r"integer targets must have shape \(4,\)"),
        ],
    )
    def test_what_does_not_fit(self, factory, model_fn, loss, batch, error, text):
        with pytest.raises(error, match=text):
            factory(model_fn, loss, W, batch)

    @pytest.mark.parametrize("batch", [X, (X,), (X, Y, Y), {"x": X, "y": Y}])
    def test_no_pair(self, factory, batch):
        with pytest.raises(TypeError, match=r"batch must be a pair \(inputs, targets\)"):
            factory(model, LOSS, W, batch)

    def test_token_weights_that_do_not_fit(self, factory):
        sequence = lambda p, x: jnp.stack([model(p, x)] * 5, axis=1)  # noqa: E731
        targets = jnp.zeros((4, 5), jnp.int32)
        with pytest.raises(ValueError, match=r"weights must have shape \(4, 5\), got \(4, 6\)"):
            factory(sequence, LOSS(per="token"), W, (X, targets), weights=jnp.ones((4, 6)))

    def test_an_unhashable_loss(self, factory):
        class Unhashable:
            __hash__ = None

            def __call__(self, outputs, targets):
                return LOSS(outputs, targets)

            def hessian_product(self, outputs, targets, tangents):
                return LOSS.hessian_product(outputs, targets, tangents)

        expected = factory(model, LOSS, W, (X, Y)) @ W
        product = factory(model, Unhashable(), W, (X, Y)) @ W
        chex.assert_trees_all_close(product, expected, rtol=1e-6)  # the same sums


def test_a_function_loss_that_reduces_over_the_batch():
    with pytest.raises(ValueError, match=r"an output loss must return one value per example"):
        flatjax.ggn(model, lambda z, t: z.mean(), W, (X, Y))
    with pytest.raises(ValueError, match=r"the loss must return one value per example, shape \(4"):
        flatjax.ggn(model, lambda z, t: z[:2, 0], W, (X, Y))
