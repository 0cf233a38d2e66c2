"""Noise has the covariance of its class, steps follow the expansion, and claims can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import noise_shape as experiment
from experiments.noise_shape.noise import CLASSES, covariance, draw, shaped
from experiments.noise_shape.steps import PROBES, _probed, _walk, single_steps


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """Nothing here depends on how well programs are optimised."""


N, SIZE, DIM = 6, 3, 4


def linear_losses(params, batch):
    """Losses whose gradients are the rows of the batch."""
    return batch[0] @ params


@pytest.mark.parametrize("kind", CLASSES)
def test_draws_have_the_covariance_of_their_class(kind):
    rows = np.random.default_rng(0).normal(size=(N, DIM)) * [1, 2, 0.5, 1] + 1
    batch = jnp.asarray(rows, jnp.float32), jnp.zeros(N)
    keys = jax.random.split(jax.random.key(1), 40_000)
    of_key = lambda key: draw(kind, key, linear_losses, jnp.zeros(DIM), batch, SIZE)  # noqa: E731
    drawn = np.asarray(jax.jit(jax.vmap(of_key))(keys), np.float64)
    expected = covariance(kind, rows, SIZE)
    # Five standard errors of entries of a covariance, of which the largest is 2.
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T, bias=True), expected, atol=0.05)


def test_covariances_in_closed_form():
    rows = np.array([[3.0, 0.0], [-1.0, 0.0], [1.0, 6.0]])
    c = np.cov(rows.T, bias=True)
    trace = np.trace(covariance("isotropic", rows, 2))
    assert trace == pytest.approx(np.trace(c) / 2)
    # All three pairs without replacement.
    pairs = np.array([(rows[i] + rows[j]) / 2 for i, j in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose(covariance("minibatch", rows, 2), np.cov(pairs.T, bias=True))
    # All eight subsets by their probabilities.
    chance, drawn = [], []
    for mask in np.ndindex(2, 2, 2):
        chance.append(np.prod(np.where(mask, 2 / 3, 1 / 3)))
        drawn.append(np.array(mask) @ rows / 2)
    away = np.array(drawn) - rows.mean(0)
    expected = (away.T * chance) @ away
    np.testing.assert_allclose(covariance("bernoulli", rows, 2), expected, atol=1e-12)


def test_shaped_replaces_the_gradient_and_turns_its_key():
    batch = jnp.eye(DIM)[:N], jnp.zeros(DIM)
    tx = optax.chain(shaped("gaussian", linear_losses, 2, 3), optax.sgd(1.0))
    params = jnp.zeros(DIM)
    state = tx.init(params)
    first, state = tx.update(params, state, params, batch=batch)
    second, _ = tx.update(params, state, params, batch=batch)
    assert not np.allclose(first, second)
    plain, _ = shaped("descent", linear_losses, 2, 3).update(
        params + 9, jax.random.key(0), params, batch=batch
    )
    np.testing.assert_allclose(plain, np.full(DIM, 0.25))


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """A loss in the place of a network's: h |p|^2 / 2."""

    h: float

    def losses_fn(self, params, batch):
        del batch
        return self.h / 2 * jnp.square(params).sum(keepdims=True)


def test_walks_on_a_quadratic():
    """One curvature h: a step turns back where eta h > 1, its middle is lowest from 4/3 on."""
    net = Quadratic(2.0)
    for rate, cosine, below in ((0.4, 1, False), (0.6, -1, False), (0.7, -1, True)):
        end, seen = _walk(net, jnp.array([1.0, 1.0]), None, 3, rate)
        np.testing.assert_allclose(seen["curvature"], 2 * rate, rtol=1e-5)
        np.testing.assert_allclose(seen["cosine"], cosine, rtol=1e-5)
        assert seen["midpoint"].tolist() == [below] * 3
        np.testing.assert_allclose(end, (1 - 2 * rate) ** 3, rtol=1e-4)
    probed = _probed(net, jnp.array([1.0, 1.0]), None, 2, 0.1)
    assert (np.asarray(probed["probed cosine"]) < 0).tolist() == [[False, True, True, True]] * 2
    assert probed["probed midpoint"].tolist() == [[False, False, False, True]] * 2


def test_single_steps_follow_the_expansion():
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, draws=2000, step_warm_up=40)
    found = single_steps(config, 0)
    assert found["descent"] == pytest.approx(1, abs=1e-4)
    for kind in CLASSES[1:]:
        # The standard error of 2,000 squares of noise of few dimensions.
        assert found[f"{kind} as {kind}"] == pytest.approx(1, abs=0.12)
        assert found[f"{kind} added"] > 0
    # The factor (n - S) / (n - 1) of 12 examples and batches of 3.
    ratio = found["minibatch as with replacement"] / found["minibatch as minibatch"]
    assert ratio == pytest.approx(9 / 11)


def _judged(*, added, plain, traces, walk, law=True, reached=True):
    config = experiment.Config(seeds=3)
    wobble = np.array([[0.998], [1.0], [1.002]])
    found = {"descent": np.full(3, plain), "descent first order": np.full(3, 0.98)}
    for kind in CLASSES[1:]:
        for other in (*CLASSES[1:], "with replacement"):
            found[f"{kind} as {other}"] = (added if other == kind else 1.3) * wobble[:, 0]
    small, large = walk
    for arm, (bent, cosine, below) in {"small": small, "large": large}.items():
        for name, values in (("curvature", bent), ("cosine", cosine), ("midpoint", below)):
            found[f"{arm} {name}"] = np.tile(values, (3, 50)).astype(float)
    turned, crossed = np.array(PROBES) > 1, np.array(PROBES) > 4 / 3
    found["probed cosine"] = np.tile(np.where(turned == law, -0.5, 0.5), (3, 5, 1))
    found["probed midpoint"] = np.tile(1.0 * (crossed == law), (3, 5, 1))
    runs = {"steps": found} | {
        kind: {"trace": trace * wobble[[1, 2, 0] if i % 2 else [0, 1, 2], 0],
               "reached": np.full(3, reached)}
        for i, (kind, trace) in enumerate(zip(CLASSES, traces, strict=True))
    }  # fmt: skip
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


SMALL = ([0.1, 0.2], [0.9, 0.8], [0, 0])
LARGE = ([1.5, 1.9, 1.6, 1.2], [-0.3, -0.6, -0.4, -0.1], [1, 1, 1, 0])


def test_verdicts_on_made_up_runs():
    good = _judged(added=1.0, plain=1.0, traces=(430, 425, 400, 362, 364, 355), walk=(SMALL, LARGE))
    assert good == dict.fromkeys(experiment.lab.claims, "reproduced")
    swapped = (
        ([0.1, 0.2], [-0.9, -0.8], [1, 1]),
        ([1.5, 0.5, 1.6], [0.9, -0.9, 0.8], [0, 1, 0]),
    )
    bad = _judged(
        added=0.75, plain=0.9, traces=(400, 340, 400, 460, 460, 390), walk=swapped, law=False
    )
    assert not {name for name, verdict in bad.items() if verdict == "reproduced"}
    # What never reaches the loss is not compared.
    short = _judged(
        added=1.0, plain=1.0, traces=(430, 425, 400, 362, 364, 355), walk=(SMALL, LARGE),
        reached=False,
    )  # fmt: skip
    assert {n for n, v in short.items() if v == "inconclusive"} == {
        "gaussian-ends-as-sgd", "bernoulli-ends-as-sgd", "isotropic-ends-as-descent",
        "sgd-ends-flatter",
    }  # fmt: skip
