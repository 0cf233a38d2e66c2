"""A small network with a dense Hessian, and every transform of the package with its needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import flatjax.transforms as ft
from flatjax import losses

N, FEATURES, HIDDEN, CLASSES = 8, 3, 4, 3


def model(params, x):
    """A tanh network: smooth, so that Hessians are exact."""
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"][None])
    return hidden @ params["last"]["w"]


def loss_fn(params, batch):
    """The mean cross-entropy."""
    return losses.softmax_cross_entropy(model(params, batch[0]), batch[1]).mean()


def per_example(params, batch):
    """The losses of the examples, shape (n,)."""
    return losses.softmax_cross_entropy(model(params, batch[0]), batch[1])


def network(dtype=jnp.float32, seed=0, n=N):
    """Params and a batch."""
    rng = np.random.default_rng(seed)
    params = {
        "first": {
            "w": jnp.asarray(rng.normal(size=(FEATURES, HIDDEN)), dtype),
            "b": jnp.asarray(rng.normal(size=HIDDEN), dtype),
        },
        "last": {"w": jnp.asarray(rng.normal(size=(HIDDEN, CLASSES)), dtype)},
    }
    batch = (
        jnp.asarray(rng.normal(size=(n, FEATURES)), dtype),
        jnp.asarray(rng.integers(0, CLASSES, n), jnp.int32),
    )
    return params, batch


RHO = 0.3
LENGTHS = (3, 1, 0, 0, 2, 4, 1, 3)


def sequences(dtype=jnp.float32):
    """Params and a batch of inputs, targets and mask: eight sequences of unequal lengths.

    The third and the fourth are empty, and hold inputs that are no numbers.
    """
    params, (x, y) = network(dtype, n=len(LENGTHS) * max(LENGTHS))
    lengths = np.asarray(LENGTHS)[:, None]
    mask = jnp.asarray(np.arange(max(LENGTHS)) < lengths)
    x = jnp.where(lengths[..., None] == 0, jnp.nan, x.reshape(*mask.shape, -1))
    return params, (x, y.reshape(mask.shape), mask)


def sequence_means(params, batch):
    """The mean over the tokens of the sequences, as a ``Mean`` of rows."""
    x, y, mask = batch
    each = per_example(params, (x.reshape(-1, x.shape[-1]), y.reshape(-1)))
    return losses.Mean((mask * each.reshape(mask.shape)).sum(axis=1), mask.sum(axis=1))


def token_mean(params, batch):
    """The mean over all tokens, as a ``Mean`` of scalars; its weight is an integer."""
    rows = sequence_means(params, batch)
    return losses.Mean(rows.total.sum(), rows.weight.sum())


def unit(v):
    """The vector divided by its norm."""
    return v / np.linalg.norm(v)


class Dense:
    """The network as a function of one float64 vector, with its dense derivatives in NumPy."""

    def __init__(self, params, batch, loss=loss_fn):
        self.w, self.unravel = ravel_pytree(params)
        self.batch = batch
        self.w = np.asarray(self.w)
        flat = lambda w, b: loss(self.unravel(w), b)  # noqa: E731
        self._value = jax.jit(flat)
        self._grad = jax.jit(jax.grad(flat))
        self._hessian = jax.jit(jax.hessian(flat))

    @functools.cached_property
    def g(self):
        """The gradient at the params."""
        return self.grad(self.w)

    @functools.cached_property
    def h(self):
        """The Hessian at the params."""
        return self.hessian(self.w)

    def sam(self, batch=None, rho=RHO):
        """The gradient at the worst point of a ball around the params."""
        return self.grad(self.w + rho * unit(self.grad(self.w, batch)), batch)

    def value(self, w, batch=None):
        return np.asarray(self._value(jnp.asarray(w), self.batch if batch is None else batch))

    def grad(self, w, batch=None):
        return np.asarray(self._grad(jnp.asarray(w), self.batch if batch is None else batch))

    def hessian(self, w, batch=None):
        return np.asarray(self._hessian(jnp.asarray(w), self.batch if batch is None else batch))


def flat(tree):
    """The raveled tree in NumPy."""
    return np.asarray(ravel_pytree(tree)[0])


def assert_close(tree, reference, rtol=1e-10, atol=1e-12):
    """Equal to rounding in float64: 1e-10 leaves room for sums in another order."""
    np.testing.assert_allclose(flat(tree), flat(reference), rtol=rtol, atol=atol)


def functions(batch, loss=loss_fn):
    """The extra arguments of ``update``, of which every transform takes what it needs."""
    return {
        "grad_fn": lambda p: jax.grad(loss)(p, batch),
        "value_fn": lambda p: loss(p, batch),
        "batch": batch,
    }


class Rigged(losses.SoftmaxCrossEntropy):
    """Cross-entropy whose draw is known: the class the model likes least."""

    def sample(self, key, outputs):
        return jnp.argmin(outputs, axis=-1)


def one_update(tx, params, batch, steps=1, **extra):
    """The last of ``steps`` updates at fixed params, and the state."""
    g = jax.grad(loss_fn)(params, batch)
    state = tx.init(params)

    @jax.jit
    def update(state):
        return tx.update(g, state, params, **{**functions(batch), **extra})

    for _ in range(steps):
        out, state = update(state)
    return out, state


def descend(tx, params, batch, steps):
    """The raveled params after each step of an optimiser, and its last state."""

    @jax.jit
    def step(params, state):
        g = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(g, state, params, **functions(batch))
        return optax.apply_updates(params, updates), state

    state, path = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        path.append(flat(params))
    return np.concatenate(path), state


STEPS = 7


def averaged(tail, net):
    """The path is unchanged; the tail's state after it, and the average."""
    params, batch = net
    tx = optax.chain(optax.sgd(0.5), tail)
    trajectory, state = descend(tx, params, batch, STEPS)
    last = Dense(params, batch).unravel(jnp.asarray(trajectory[-flat(params).size :]))
    return trajectory, state, flat(ft.averaged_params(state, last))


def update(tx, net, **extra):
    """An update of zeros, traced: the errors come before anything runs."""
    params, _ = net
    zero = jax.tree.map(jnp.zeros_like, params)
    jax.eval_shape(lambda: tx.update(zero, tx.init(params), params, **extra))


HEADS = {
    "sam": lambda **k: ft.sam(**{"rho": 0.05, **k}),
    "sam_every": lambda **k: ft.sam(**{"rho": 0.05, "every": 3, "diagnostics": True, **k}),
    "asam": lambda **k: ft.sam(**{"rho": 0.05, "ascent": ft.Ascent(adaptive=True), **k}),
    "gsam": lambda **k: ft.gsam(**{"rho": 0.05, **k}),
    "looksam": lambda **k: ft.looksam(**{"rho": 0.05, "every": 2, **k}),
    "wsam": lambda **k: ft.wsam(**{"rho": 0.05, **k}),
    "friendly_sam": lambda **k: ft.friendly_sam(**{"rho": 0.05, **k}),
    "gradient_norm_penalty": lambda **k: ft.gradient_norm_penalty(**{"rho": 0.05, **k}),
    "gradient_penalty": lambda **k: ft.gradient_penalty(**{"coef": 0.01, **k}),
    "implicit_gradient_regularization": lambda **k: ft.implicit_gradient_regularization(
        **{"learning_rate": 0.1, **k}
    ),
    "stochastic_implicit_gradient_regularization": (
        lambda **k: ft.stochastic_implicit_gradient_regularization(
            **{"learning_rate": 0.1, "loss_fn": loss_fn, "micro_batches": 4, **k}
        )
    ),
    "fisher_penalty": lambda **k: ft.fisher_penalty(
        model, losses.softmax_cross_entropy, **{"coef": 0.1, "every": 2, "sub_batch": 4, **k}
    ),
    "random_label_gradient_penalty": lambda **k: ft.random_label_gradient_penalty(
        model, losses.softmax_cross_entropy, **{"coef": 0.1, "every": 2, **k}
    ),
    "input_gradient_penalty": lambda **k: ft.input_gradient_penalty(
        model, losses.softmax_cross_entropy, **{"coef": 0.1, **k}
    ),
    "gradient_noise": lambda **k: ft.gradient_noise(**{"scale": 0.01, **k}),
    "gradient_noise_true": lambda **k: ft.gradient_noise(
        **{"scale": 0.01, "covariance": "gradient", "loss_fn": per_example, **k}
    ),
    "label_noise": lambda **k: ft.label_noise(
        model, losses.softmax_cross_entropy, **{"flip_probability": 0.1, **k}
    ),
}
WHOLE = {
    "wsam_decoupled": lambda **k: ft.wsam(
        **{"rho": 0.05, "optimizer": optax.sgd(0.01), "learning_rate": 0.01, **k}
    ),
    "momentum_sam": lambda **k: ft.momentum_sam(
        **{"learning_rate": 0.1, "rho": lambda t: 0.1 * (t + 1).astype("f4"), **k}
    ),
    "langevin": lambda **k: ft.langevin(
        **{"learning_rate": 1e-4, "num_data": N, "friction": 0.1, **k}
    ),
    "langevin_rms": lambda **k: ft.langevin(
        **{"learning_rate": 1e-4, "num_data": N, "preconditioner": "rms", **k}
    ),
    "entropy_sgd": lambda **k: ft.entropy_sgd(**{"inner_steps": 3, **k}),
}
TAILS = {
    "ema_params": lambda **k: ft.ema_params(**{"decay": 0.9, **k}),
    "ema_debiased": lambda **k: ft.ema_params(**{"decay": 0.9, "debias": True, **k}),
    "swa": lambda **k: ft.swa(**{"every": 2, **k}),
    "swag": lambda **k: ft.swag(**{"every": 2, "rank": 2, **k}),
}
EVERY = {**HEADS, **WHOLE, **TAILS}
