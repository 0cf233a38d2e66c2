"""Losses of the user's own: subclasses, plain functions, objects; and the errors of all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.losses._own import as_loss, follow_loss


@dataclasses.dataclass(frozen=True)
class Exponential(flatjax.OutputLoss):
    """The likelihood of exponential waiting times by their log mean, with a field of its own."""

    unit: float = 1.0

    def values(self, outputs, targets):
        return outputs + targets / self.unit * jnp.exp(-outputs)

    def hessian_values(self, outputs, targets, tangents):
        return targets / self.unit * jnp.exp(-outputs) * tangents

    def sample(self, key, outputs):
        noise = jax.random.exponential(key, outputs.shape, outputs.dtype)
        return self.unit * jnp.exp(outputs) * noise


def test_a_subclass_is_a_loss(x64):
    loss, z, t = Exponential(unit=2.0), jnp.linspace(-1, 1, 5), jnp.arange(5.0)
    np.testing.assert_allclose(loss(z, t), z + t / 2 * np.exp(-z), rtol=1e-14)
    u = jnp.ones(5)
    gradient = jax.grad(lambda z: loss(z, t).sum())
    np.testing.assert_allclose(
        loss.hessian_product(z, t, u), jax.jvp(gradient, (z,), (u,))[1], rtol=1e-14
    )
    assert as_loss(loss) is loss
    assert loss.closed_form
    assert loss(per="token") == Exponential(per="token", unit=2.0)
    assert loss(per="token") != Exponential(per="token", unit=3.0)


def test_a_subclass_in_the_operators(x64):
    x, w = jnp.eye(3, 2), jnp.ones(2)
    batch, model = (x, jnp.ones(3)), lambda w, x: x @ w
    for unit in (1.0, 2.0):  # another loss is another program
        G = flatjax.ggn(model, Exponential(unit=unit), w, batch)
        np.testing.assert_allclose(G.to_dense(), np.eye(2) / (3 * unit * np.e), rtol=1e-14)
    F = flatjax.fisher(
        model, Exponential(), w, batch, kind="sampled", key=jax.random.key(0), num_samples=20_000
    )
    # The score 1 - e of an exponential e has E (1 - e)^2 = 1 and Var (1 - e)^2 = 8: the standard
    # error is sqrt(8 / 20000) = 2 % of each entry.
    np.testing.assert_allclose(F.to_dense(), np.eye(2) / 3, atol=0.09 / 3)


class Padded(flatjax.OutputLoss):
    """Half the squared error of one output, of which targets at -99 and below are padding."""

    def values(self, outputs, targets):
        return (outputs[..., 0] - targets) ** 2 / 2

    def hessian_values(self, outputs, targets, tangents):
        return tangents

    def sample(self, key, outputs):
        return outputs[..., 0] + jax.random.normal(key, outputs.shape[:-1], outputs.dtype)

    def mask(self, outputs, targets):
        return (targets > -99).astype(outputs.dtype)


@pytest.mark.parametrize("per", ["example", "token"])
def test_padding_of_a_subclass_stays_padding_where_targets_are_drawn(x64, per):
    loss, targets = Padded(per=per), jnp.array([[0.5, -100.0, -100.0]])
    x = jnp.array([[[1.0], [10.0], [10.0]]])
    drawn = loss.resample(jax.random.key(0), x, targets)
    assert drawn[0, 0] == Padded().sample(jax.random.key(0), x)[0, 0] != targets[0, 0]
    np.testing.assert_array_equal(drawn[0, 1:], targets[0, 1:])
    found = flatjax.fisher(
        lambda w, x: x @ w, loss, jnp.ones((1, 1)), (x, targets), kind="sampled",
        key=jax.random.key(0), num_samples=2000,
    )  # fmt: skip
    # The square of a normal number, of mean 1 and variance 2: 3 % of standard error.
    np.testing.assert_allclose(found.to_dense(), [[1.0]], atol=0.13)

    class Pairs(Padded):
        def sample(self, key, outputs):
            return outputs

    with pytest.raises(ValueError, match=r"Pairs.sample draws targets of shape \(1, 3, 1\)"):
        Pairs().resample(jax.random.key(0), x, targets)


def test_values_of_another_shape_are_refused():
    class Squared(flatjax.OutputLoss):
        def values(self, outputs, targets):
            return (outputs - targets) ** 2  # (n, 1) less (n,): (n, n)

        def hessian_values(self, outputs, targets, tangents):
            return tangents[..., 0]

    z, t = jnp.ones((4, 1)), jnp.zeros((1, 4))
    for call in (Squared(), Squared().mean, lambda z, t: Squared().score_product(z, t, z)):
        with pytest.raises(ValueError, match=r"one value per position, shape \(4,\).* got \(4, 4"):
            call(z, t)
    with pytest.raises(ValueError, match=r"like its tangents, of shape \(4, 1\), got \(4,\)"):
        Squared().hessian_product(z, t, z)


def test_an_unfinished_subclass_names_what_is_missing():
    class Unfinished(flatjax.OutputLoss):
        pass

    z = jnp.ones((2, 3))
    with pytest.raises(NotImplementedError, match="Unfinished must implement `values`"):
        Unfinished()(z, z)
    with pytest.raises(NotImplementedError, match="Unfinished must implement `hessian_values`"):
        Unfinished().hessian_product(z, z, z)
    with pytest.raises(TypeError, match=r"Unfinished cannot sample targets: implement `sample"):
        Unfinished().sample(jax.random.key(0), z)


class TestFunctions:
    z, t = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 2))

    def test_an_object_with_a_product_of_its_own(self):
        class Quartic:
            def __call__(self, z, t):
                return (t * z**4).sum(axis=-1) / 12

            def hessian_product(self, z, t, u):
                return t * z**2 * u

        for loss in (
            as_loss(Quartic()),
            follow_loss(as_loss(Quartic()), (self.z, self.t)),
        ):
            product = loss.hessian_product(self.z, self.t, jnp.ones_like(self.z))
            np.testing.assert_allclose(product, self.z**2, rtol=1e-6)
            assert loss.closed_form

    def test_derived_hessian(self):
        loss = as_loss(lambda z, t: (t * z**4).sum(axis=-1) / 12)
        np.testing.assert_allclose(
            loss.hessian_product(self.z, self.t, jnp.ones_like(self.z)), self.z**2, rtol=1e-6
        )
        assert not loss.closed_form

    def test_equal_functions_are_equal_losses(self):
        def fn(z, t):
            return z.sum(axis=-1)

        assert as_loss(fn) == as_loss(fn)
        assert hash(as_loss(fn)) == hash(as_loss(fn))

    def test_one_value_an_example(self):
        with pytest.raises(ValueError, match=r"per example, shape \(n,\), got \(\): do n"):
            as_loss(lambda z, t: z.mean())(self.z, self.t)

    def test_no_samples(self):
        with pytest.raises(TypeError, match="this loss cannot sample targets: use one of flatjax"):
            as_loss(lambda z, t: z).sample(jax.random.key(0), self.z)

    def test_no_tokens(self):
        with pytest.raises(ValueError, match="`per` needs one of flatjax's losses; a function"):
            as_loss(lambda z, t: z)(self.z, self.t, per="token")

    def test_not_callable(self):
        with pytest.raises(TypeError, match=r"loss must be an output loss such as.*got float"):
            as_loss(1.0)

    def test_a_class(self):
        with pytest.raises(TypeError, match=r"SquaredError\(\) in place of the class"):
            as_loss(type(flatjax.squared_error))


class TestErrors:
    z = jnp.ones((2, 3))

    def test_nothing_given(self):
        assert flatjax.softmax_cross_entropy() is flatjax.softmax_cross_entropy
        assert flatjax.squared_error() is flatjax.squared_error

    def test_per(self):
        with pytest.raises(ValueError, match="per must be one of 'example', 'token', got 'tokens'"):
            flatjax.softmax_cross_entropy(per="tokens")

    def test_logits_without_classes(self):
        with pytest.raises(ValueError, match=r"needs logits of shape \(n, classes\), got \(3,\)"):
            flatjax.softmax_cross_entropy(jnp.ones(3), jnp.zeros(3, jnp.int32))

    def test_ids_of_another_shape(self):
        text = r"integer targets must have shape \(2,\) for logits of shape \(2, 3\), got \(2, 3\)"
        with pytest.raises(ValueError, match=text):
            flatjax.softmax_cross_entropy(self.z, jnp.zeros((2, 3), jnp.int32))

    def test_ids_that_are_floats(self):
        text = r"must have the shape of the logits.*class ids must be integers, got dtype float32"
        with pytest.raises(ValueError, match=text):
            flatjax.softmax_cross_entropy(self.z, jnp.zeros(2))

    @pytest.mark.parametrize(
        ("name", "loss"),
        [
            ("squared_error", flatjax.squared_error),
            ("sigmoid_binary_cross_entropy", flatjax.sigmoid_binary_cross_entropy),
        ],
    )
    def test_targets_of_another_shape(self, name, loss):
        text = rf"{name} needs targets shaped like the outputs, \(2, 3\), got \(2,\)"
        with pytest.raises(ValueError, match=text):
            loss(self.z, jnp.zeros(2))
        with pytest.raises(ValueError, match=text):
            loss.hessian_product(self.z, jnp.zeros(2), self.z)
