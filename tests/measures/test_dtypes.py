"""Params in low precision are a point in float32: every measure perturbs and answers there."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import measures
from tests.measures import networks

KEY = jax.random.key(0)
SMALL = 1e-4  # of weights of order one: less than half a unit in the last place of both dtypes
DATA = tuple(jnp.asarray(a, d) for a, d in zip(networks.data(), ("float32", "int32"), strict=True))
LABELS = DATA[1]


def loss_fn(params, batch):
    # The inputs are float32 and promotion is strict, so anything else is an error, too.
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    return networks.relu_loss(params, batch)


def model_fn(params, inputs):
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    return networks.relu_net(params, inputs)


def moved(params):
    return jax.tree.map(lambda a: -a, params)


def operator(params):
    """Given by the user, so in whatever precision the user made it; here the same for all."""
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    return flatjax.hessian(loss_fn, wide, DATA)


# What a measure says of params; every option that leads through other code is here.
OF_PARAMS = {
    "average_sharpness": lambda w: measures.average_sharpness(
        loss_fn, w, DATA, sigma=SMALL, key=KEY, num_samples=2
    ),
    "average_sharpness adaptive": lambda w: measures.average_sharpness(
        loss_fn, w, DATA, sigma=SMALL, key=KEY, num_samples=2, adaptive=True, antithetic=False
    ),
    "critical_sharpness": lambda w: measures.critical_sharpness(
        loss_fn, w, DATA, update=moved(w), initial_step=SMALL, factor=1.0001, max_trials=3
    ),
    "batch_sharpness": lambda w: measures.batch_sharpness(loss_fn, w, [DATA, DATA]),
    "curvature_gradient": lambda w: measures.curvature_gradient(
        loss_fn, w, moved(w), moved(w), DATA
    ),
    "eps_sharpness": lambda w: measures.eps_sharpness(
        loss_fn, w, DATA, epsilon=SMALL, ascent_steps=2
    ),
    "eps_sharpness forward": lambda w: measures.eps_sharpness(
        loss_fn, w, DATA, epsilon=SMALL, subspace=2, gradient="forward", key=KEY, ascent_steps=2
    ),
    "fisher_rao_norm": lambda w: measures.fisher_rao_norm(
        model_fn, flatjax.softmax_cross_entropy, w, DATA, degree=3
    ),
    "gradient_confusion": lambda w: measures.gradient_confusion(loss_fn, w, DATA),
    "gradient_noise_scale": lambda w: measures.gradient_noise_scale(loss_fn, w, DATA),
    "hessian_variance": lambda w: measures.hessian_variance(loss_fn, w, DATA) @ moved(w),
    "linear_stability": lambda w: measures.linear_stability(
        loss_fn, w, DATA, learning_rate=0.1, batch_size=2, key=KEY, max_products=12
    ),
    "local_learning_coefficient": lambda w: measures.local_learning_coefficient(
        loss_fn, w, [DATA], key=KEY, num_data=100, localization=1.0, step_size=SMALL,
        num_chains=2, num_steps=4, num_burnin=2,
    ),
    "pac_bayes_flatness": lambda w: measures.pac_bayes_flatness(
        loss_fn, w, DATA, increase=SMALL, initial_sigma=SMALL, key=KEY, num_samples=2,
        max_trials=3, num_examples=12, prior=moved(w),
    ),
    "sam_sharpness": lambda w: measures.sam_sharpness(loss_fn, w, DATA, rho=SMALL, ascent_steps=2),
    "sam_sharpness adaptive": lambda w: measures.sam_sharpness(
        loss_fn, w, DATA, rho=SMALL, p=jnp.inf, adaptive=True, num_starts=2, key=KEY
    ),
    "stiffness": lambda w: measures.stiffness(loss_fn, w, DATA, labels=LABELS, num_classes=3),
    "angular_update": lambda w: measures.angular_update(
        w, jax.tree.map(lambda a: jnp.flip(a, 0), w)
    ),
    "effective_learning_rate": lambda w: measures.effective_learning_rate(w, 0.1),
    "gradient_alignment": lambda w: measures.gradient_alignment(w[0], w[0]),
    "normalized_sharpness": lambda w: measures.normalized_sharpness(w, jax.tree.map(jnp.abs, w)),
    "scale_invariant_sharpness": lambda w: measures.scale_invariant_sharpness(
        operator(w), w, key=KEY, statistic="trace", num_products=2
    ),
    "subspace_overlap": lambda w: measures.subspace_overlap(w[0], w[0][None]),
}  # fmt: skip
OF_OPERATORS = {
    "alignment",
    "directional_sharpness",
    "generalized_sharpness",
    "sharpness",
}  # which have their precision
OF_NUMBERS = {"gradient_noise_scale_from_norms", "low_rank"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", OF_PARAMS)
def test_the_answer_is_that_of_the_same_point_in_float32(name, dtype):
    narrow = [jnp.asarray(a, dtype) for a in networks.relu_params()]
    wide = [a.astype(jnp.float32) for a in narrow]
    got, expected = OF_PARAMS[name](narrow), OF_PARAMS[name](wide)
    # Exactly: it is the same program on the same numbers.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        assert jnp.asarray(a).dtype not in (jnp.bfloat16, jnp.float16)
        np.testing.assert_array_equal(a, b)


def test_no_measure_is_left_out():
    functions = {name for name, _ in inspect.getmembers(measures, inspect.isfunction)}
    assert functions == {name.split()[0] for name in OF_PARAMS} | OF_OPERATORS | OF_NUMBERS
