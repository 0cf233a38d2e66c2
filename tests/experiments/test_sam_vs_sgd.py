"""The claims fail where SAM is no flatter."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import sam_vs_sgd as experiment


def _end(top, test, *, reached=True):
    size = 3  # seeds
    return {
        "reached": np.full(size, reached),
        "sharpness": np.full(size, float(top)),
        "trace": np.full(size, 50.0 * top**0.6),
        "sam_sharpness": np.full(size, 0.02 * top),
        "norm": np.full(size, 20.0),
        "eigenvalues": np.tile([top, 0.0, 0.0, 0.0, 1.5], (size, 1)),
        "test_accuracy": np.full(size, float(test)),
    }


FOUND = {
    "SGD": (14, 0.7), "random": (13.9, 0.701), "rho 0.05": (8, 0.72), "rho 0.1": (4, 0.76),
    "SAM": (2.4, 0.8), "p 1.5": (3.0, 0.79), "p inf": (3.0, 0.79),
}  # fmt: skip


def _verdicts(changed=(), **options):
    runs = {
        (arm, noise): _end(top, test if noise else 0.95 + 0.05 * (test - 0.7), **options)
        for arm, (top, test) in {**FOUND, **dict(changed)}.items()
        for noise in experiment.NOISES
    }
    config = experiment.Config(seeds=3)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    useless = {arm: (14.5, 0.695) for arm in FOUND if arm not in ("SGD", "random")}
    assert set(_verdicts(useless).values()) == {"not reproduced"}
    assert set(_verdicts(reached=False).values()) == {"inconclusive"}


def test_random_steps_are_of_their_length_and_take_the_gradient_there():
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    steps = experiment.random_steps(0.3, 5)
    state = steps.init(params)
    # The gradient of half the squared norm is where it is taken.
    found, state = steps.update(params, state, params, grad_fn=lambda p: p)
    moved = optax.tree.sub(found, params)
    assert optax.tree.norm(moved) == pytest.approx(0.3, rel=1e-5)  # float32
    again, _ = steps.update(params, state, params, grad_fn=lambda p: p)
    assert optax.tree.norm(optax.tree.sub(again, found)) > 0.1
