"""Bad arguments of the factories are errors at the door, with the fix in the text."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


class TestEveryFactory:
    def test_no_params(self, make):
        with pytest.raises(ValueError, match="params has no entries: pass a pytree of floating"):
            make({}, (X, Y))
        with pytest.raises(ValueError, match="params has no entries"):
            make({"w": jnp.zeros((0, 2))}, (X, Y))

    @pytest.mark.parametrize(
        ("leaf", "kind"),
        [
            (jnp.ones(2, jnp.int32), "dtype int32"),
            (1.0, "float"),
        ],
    )
    def test_params_that_are_not_floating(self, make, leaf, kind):
        text = rf"params\['b'\] must be a real floating array, got {kind}: pass counters, keys"
        with pytest.raises(TypeError, match=text):
            make({"b": leaf, "w": W["w"]}, (X, Y))

    def test_text_among_the_params(self, make):
        with pytest.raises(TypeError, match=r"params\['b'\] is text \('text'\): leave it out"):
            make({"b": "text", "w": W["w"]}, (X, Y))

    def test_complex_params(self, make):
        text = "got dtype complex64: pass the real and the imaginary part as two leaves"
        with pytest.raises(TypeError, match=text):
            make({"w": W["w"].astype(jnp.complex64)}, (X, Y))

    def test_flags_among_the_params(self, make):
        with pytest.raises(TypeError, match=r"params\['b'\] must be a real floating array, got"):
            make({"b": jnp.array([True]), "w": W["w"]}, (X, Y))
        with pytest.raises(TypeError, match=r"got bool: pass counters, keys and model state"):
            make({"b": True, "w": W["w"]}, (X, Y))

    def test_functions_among_the_params(self, make):
        text = r"got function: split the functions off.*equinox.partition\(model, equinox.is_inexac"
        with pytest.raises(TypeError, match=text):
            make({"activation": lambda x: x, "w": W["w"]}, (X, Y))
        with pytest.raises(TypeError, match="got custom_jvp: split the functions off"):
            make({"activation": jax.nn.relu, "w": W["w"]}, (X, Y))

    @pytest.mark.parametrize("where", ["params", "batch"])
    def test_tensors_of_another_library(self, make, where):
        class Tensor:
            shape, dtype = (4, 3), "torch.float32"

        params = {"w": Tensor()} if where == "params" else W
        text = rf"{where}\[.*\] is a .*Tensor, no array of JAX: convert it.*tensor.detach"
        with pytest.raises(TypeError, match=text):
            make(params, (X if where == "params" else Tensor(), Y))

    def test_swapped_arguments(self, make):
        with pytest.raises(TypeError, match="params is a function: the order is"):
            make(lambda p, b: 0.0, (X, Y))

    def test_text_beside_the_arrays(self, make):
        ids = np.array(["a"] * 4)
        with pytest.raises(TypeError, match=r"dtype <U1, which JAX cannot hold: leave text, ids"):
            make(W, ({"x": X, "id": ids}, Y))
        with pytest.raises(TypeError, match="dtype object, which JAX cannot hold: leave text"):
            make(W, ({"x": X, "id": ids.astype(object)}, Y))
        with pytest.raises(TypeError, match=r"batch\[0\]\['id'\]\[0\] is text \('a'\): leave it"):
            make(W, ({"x": X, "id": list("abcd")}, Y))

    def test_sets_of_unequal_sizes(self, make):
        text = r"share a leading axis.*unequal sizes.*go through \*args with batch=None: loss_fn\(p"
        with pytest.raises(ValueError, match=text):
            make(W, (X, Y[:3]))

    def test_a_key_among_the_params(self, make):
        with pytest.raises(TypeError, match=r"got dtype key<fry>: pass counters, keys and model"):
            make({"key": jax.random.key(0), "w": W["w"]}, (X, Y))

    def test_an_empty_batch(self, make):
        with pytest.raises(ValueError, match="batch is empty: it needs at least one example"):
            make(W, (X[:0], Y[:0]))

    def test_unequal_axes(self, make):
        text = r"leaves of batch must share a leading axis, got \{'\[0\]': 4, '\[1\]': 3\}"
        with pytest.raises(ValueError, match=text):
            make(W, (X, Y[:3]))

    def test_a_scalar_in_the_batch(self, make):
        with pytest.raises(ValueError, match=r"batch\[1\] has no leading example axis: pass val"):
            make(W, (X, jnp.float32(1.0)))

    @pytest.mark.parametrize("shape", [(3,), (4, 1), (4, 4), ()])
    def test_weights_of_another_shape(self, make, shape):
        with pytest.raises(ValueError, match=r"weights must have one entry an example.*\(4,\)"):
            make(W, (X, Y), weights=jnp.ones(shape))

    def test_complex_weights(self, make):
        with pytest.raises(TypeError, match="weights must be real numbers or a mask, got dtype"):
            make(W, (X, Y), weights=jnp.ones(4, jnp.complex64))

    def test_axis_name(self, make):
        with pytest.raises(TypeError, match="axis_name must be a name or a tuple of names"):
            make(W, (X, Y), axis_name=["data"])

    def test_precision(self, make):
        with pytest.raises(ValueError, match=r"precision must be one of .*'highest'.*, got 'best'"):
            make(W, (X, Y), precision="best")

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

    @pytest.mark.parametrize("sizes", [(4, 4), (4, 3)])
    def test_a_list_of_batches(self, factory, sizes):
        batches = [(X[:n], Y[:n]) for n in sizes]
        with pytest.raises((TypeError, ValueError), match=r"see flatjax\.over_batches"):
            factory(losses_fn, W, batches)

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

    def test_auxiliary_output(self, factory):
        with pytest.raises(TypeError, match=r"loss_fn must return one real floating array.*drop"):
            factory(lambda p, b: (losses_fn(p, b), {}), W, (X, Y))

    def test_integer_output(self, factory):
        with pytest.raises(TypeError, match="loss_fn must return one real floating array"):
            factory(lambda p, b: b[1], W, (X, Y))

    @pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
    def test_another_shape(self, factory, shape):
        text = r"loss_fn must return a scalar or one value an example, shape \(4,\), got"
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
    def test_no_function(self, factory):
        with pytest.raises(TypeError, match="model_fn must be a function, got dict"):
            factory(W, LOSS, W, (X, Y))

    def test_no_loss(self, factory):
        with pytest.raises(TypeError, match=r"loss must be an output loss such as flatjax.softmax"):
            factory(model, "cross-entropy", W, (X, Y))

    @pytest.mark.parametrize("batch", [X, (X,), (X, Y, Y), {"x": X, "y": Y}])
    def test_no_pair(self, factory, batch):
        with pytest.raises(TypeError, match=r"batch must be a pair \(inputs, targets\)"):
            factory(model, LOSS, W, batch)

    def test_auxiliary_output(self, factory):
        with pytest.raises(TypeError, match=r"model_fn must return one real floating array.*drop"):
            factory(lambda p, x: (model(p, x), {}), LOSS, W, (X, Y))

    def test_outputs_of_other_examples(self, factory):
        with pytest.raises(ValueError, match=r"one row an example, leading axis 4, got shape \(3"):
            factory(lambda p, x: model(p, x)[:3], LOSS, W, (X, Y))

    def test_targets_that_do_not_fit(self, factory):
        with pytest.raises(ValueError, match=r"integer targets must have shape \(4,\)"):
            factory(model, LOSS, W, (X, jnp.zeros((4, 2), jnp.int32)))

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
    with pytest.raises(ValueError, match=r"an output loss must return one value an example"):
        flatjax.ggn(model, lambda z, t: z.mean(), W, (X, Y))
    with pytest.raises(ValueError, match=r"the loss must return one value an example, shape \(4"):
        flatjax.ggn(model, lambda z, t: z[:2, 0], W, (X, Y))
