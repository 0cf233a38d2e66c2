"""Labels beyond the classes, labels that are ignored, and infinite logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax

LOSS, SIGMOID = flatjax.softmax_cross_entropy, flatjax.sigmoid_binary_cross_entropy
RNG = np.random.default_rng(0)
Z, U = RNG.normal(size=(2, 4, 3))


def derivatives(loss, z, t, u):
    """The loss, its gradient and its three products."""
    return (
        loss(z, t),
        jax.grad(lambda z: loss(z, t).sum())(z),
        loss.hessian_product(z, t, u),
        loss.gradient_product(z, t, u),
        loss.score_product(z, t, u),
    )


class TestBeyondTheClasses:
    @pytest.mark.parametrize(
        ("dtype", "label"),
        [("uint8", 255), ("uint8", 3), ("int32", 3), ("int8", 127), ("uint16", 65535),
         ("uint32", 2**32 - 1), ("int64", 1000)],
    )  # fmt: skip
    def test_are_nan_everywhere_and_in_their_row_alone(self, dtype, label):
        labels = np.array([0, label, 2, 1], dtype)
        for found in derivatives(LOSS, jnp.asarray(Z), labels, jnp.asarray(U)):
            rows = np.isnan(np.asarray(found)).reshape(4, -1)
            assert rows.all(axis=1).tolist() == [False, True, False, False]
            assert not rows[[0, 2, 3]].any()

    @pytest.mark.parametrize(("dtype", "label"), [("uint8", 255), ("int8", 127)])
    def test_more_classes_than_the_type_holds(self, dtype, label):
        z = jnp.zeros((2, 300))
        labels = jnp.array([label, 0], dtype)
        np.testing.assert_allclose(LOSS(z, labels, ignore_index=299), np.log(300), rtol=1e-6)

    def test_draws_stay_nan(self, key):
        drawn = LOSS.resample(key, jnp.asarray(Z), jnp.array([0, 7, -1, 1]))
        assert drawn[1] == 3
        assert drawn[2] == -1
        assert np.isnan(LOSS(jnp.asarray(Z), drawn)).tolist() == [False, True, False, False]

    def test_probabilities_that_are_nan(self):
        t = jnp.asarray(np.eye(3)[[0, 1, 2, 0]]).at[1, 2].set(jnp.nan)
        found = LOSS(jnp.asarray(Z), t)
        assert np.isnan(found).tolist() == [False, True, False, False]


class TestIgnoreIndex:
    labels = np.array([[0, 255, 2], [255, 255, 1], [255, 255, 255], [1, 2, 0]], np.uint8)
    z, u = RNG.normal(size=(2, 4, 3, 3))

    @pytest.mark.parametrize("per", ["example", "token"])
    def test_is_a_negative_id(self, per):
        """In the denominator too."""
        negative = np.where(self.labels == 255, -1, self.labels.astype(int))
        args = jnp.asarray(self.z), jnp.asarray(self.u)
        found = derivatives(LOSS(per=per, ignore_index=255), args[0], self.labels, args[1])
        wanted = derivatives(LOSS(per=per), args[0], negative, args[1])
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        assert np.any(wanted[0])

    def test_calling_forms(self):
        z = jnp.asarray(self.z)
        wanted = LOSS(ignore_index=255)(z, self.labels)
        np.testing.assert_array_equal(LOSS(z, self.labels, ignore_index=255), wanted)
        tokens = LOSS(per="token")(ignore_index=255)
        assert tokens.per == "token"
        assert tokens(z, self.labels).shape == (12,)
        both = LOSS(z, self.labels, per="token", ignore_index=255)
        np.testing.assert_array_equal(both, tokens(z, self.labels))
        assert tokens(per="example").ignore_index == 255

    def test_beside_negative_ids_and_wrong_ones(self):
        found = LOSS(jnp.asarray(Z), jnp.array([-1, 9, 4, 1]), ignore_index=9)
        assert found[0] == 0
        assert found[1] == 0
        assert np.isnan(found[2])
        assert found[3] > 0

    def test_a_class_that_is_drawn_and_ignored_as_a_target(self, x64):
        """Class 0 stands for padding in the targets, and is drawn like any other."""
        x, w = jnp.asarray(RNG.normal(size=(4, 2))), jnp.asarray(RNG.normal(size=(2, 3)))
        y, v = jnp.array([1, 0, 2, 1]), jnp.asarray(RNG.normal(size=(2, 3)))
        products = [
            flatjax.fisher(lambda w, x: x @ w, loss, w, (x, targets), kind="sampled",
                           key=jax.random.key(0), num_samples=64) @ v
            for loss, targets in ((LOSS(ignore_index=0), y), (LOSS, jnp.where(y == 0, -1, y)))
        ]  # fmt: skip
        np.testing.assert_allclose(products[0], products[1], rtol=1e-12)

    def test_an_id_that_the_type_cannot_hold(self):
        labels = jnp.array([0, 1, 2, 0], jnp.uint8)
        found = LOSS(jnp.asarray(Z), labels, ignore_index=-100)
        np.testing.assert_array_equal(found, LOSS(jnp.asarray(Z), labels))

    @pytest.mark.parametrize("index", [True, 1.0, "255"])
    def test_no_id(self, index):
        with pytest.raises(TypeError, match="ignore_index must be a class id, an integer, got"):
            LOSS(ignore_index=index)
        for share in (-0.1, 1.0):
            with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\), got"):
                LOSS(label_smoothing=share)

    def test_probabilities(self):
        with pytest.raises(ValueError, match="ignore_index= is for class ids: mask probab"):
            LOSS(jnp.asarray(Z), jnp.ones((4, 3)), ignore_index=255)


class TestInfiniteLogits:
    """Classes that a model rules out with -inf."""

    z = np.where(np.arange(3) == 2, -np.inf, Z)

    def test_without_a_target_they_count_nothing(self, x64):
        soft = jnp.array([0.25, 0.75, 0.0]) * jnp.ones((4, 1))
        u = jnp.asarray(U)
        found = derivatives(LOSS, jnp.asarray(self.z), soft, u)
        wanted = derivatives(LOSS, jnp.asarray(Z)[:, :2], soft[:, :2], u[:, :2])
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-14)
        for a, b in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(a[:, :2], b, rtol=1e-12)
            np.testing.assert_array_equal(a[:, 2], 0.0)

    def test_with_a_target_the_loss_is_infinite(self):
        soft = jnp.array([0.25, 0.5, 0.25]) * jnp.ones((4, 1))
        assert np.isposinf(LOSS(jnp.asarray(self.z), soft)).all()
        assert np.isposinf(LOSS(jnp.asarray(self.z), jnp.full(4, 2))).all()

    def test_of_binary_labels(self):
        z = jnp.array([[jnp.inf, -jnp.inf, 1.0]])
        right, wrong = jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[0.0, 0.0, 1.0]])
        np.testing.assert_allclose(SIGMOID(z, right), np.log1p(np.exp(-1)), rtol=1e-6)
        assert np.isposinf(SIGMOID(z, wrong)).all()
        gradient = jax.grad(lambda z: SIGMOID(z, right).sum())(z)
        np.testing.assert_allclose(gradient[0], [0.0, 0.0, -1 / (1 + np.e)], rtol=1e-6)


def test_int64_labels_of_numpy_warn_of_nothing():
    """Warnings are errors here."""
    labels = np.array([0, 1, -1, 2], np.int64)
    x, w = jnp.asarray(RNG.normal(size=(4, 2))), jnp.ones((2, 3))
    G = flatjax.ggn(lambda w, x: x @ w, LOSS, w, (x, labels))
    H = flatjax.hessian(lambda w, b: LOSS(b[0] @ w, labels), w, (x, labels))
    # Three of four labels count in the mean of G, all four in that of the losses.
    np.testing.assert_allclose(H @ w, 0.75 * (G @ w), rtol=0, atol=1e-6)
