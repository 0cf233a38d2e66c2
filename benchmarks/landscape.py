"""What pictures of the loss surface cost beside the passes that they are made of.

A surface of 51 x 51 points beside as many calls of the jitted loss, and a step along a Bezier curve
beside a gradient with an SGD update of one network, on the two networks of `benchmarks.transforms`.
Times are the least of several runs, taken in turn.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from benchmarks import transforms
from flatjax.losses import softmax_cross_entropy
from tests.compilations import count_compilations

POINTS, STEPS, REPEATS = 51, 50, 3


def least(*functions) -> list[float]:
    """The least seconds of each function, run in turn."""
    found = []
    for _ in range(REPEATS):
        for function in functions:
            begin = time.perf_counter()
            jax.block_until_ready(function())
            found.append(time.perf_counter() - begin)
    return [min(found[i :: len(functions)]) for i in range(len(functions))]


def measure(make) -> dict[str, float]:
    """The ratios of one network."""
    model_fn, params, inputs = make()
    batch = (inputs, jnp.zeros(transforms.EXAMPLES, jnp.int32))

    def loss_fn(params, batch):
        return softmax_cross_entropy(model_fn(params, batch[0]), batch[1]).mean()

    key = jax.random.key(0)
    first, second = (
        jax.tree.map(lambda a, i=i: a[i], flatjax.random_directions(params, 2, key=key, axis=-1))
        for i in range(2)
    )
    positions = np.linspace(-1, 1, POINTS, dtype=np.float32)
    forward = jax.jit(loss_fn)

    def surface():
        return flatjax.loss_surface(
            loss_fn, params, batch, first=first, second=second, positions=positions
        ).losses

    def forwards():
        return jax.device_get([forward(params, batch) for _ in range(POINTS**2)])

    with count_compilations() as count:
        surface()
    forwards()
    whole, alone = least(surface, forwards)

    optimizer = optax.sgd(0.01, momentum=0.9)
    curve = flatjax.bezier([params, None, first])

    def fit():
        options = {"optimizer": optimizer, "key": key, "num_steps": STEPS}
        return flatjax.fit_curve(loss_fn, curve, [batch], **options).losses

    @jax.jit
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    def train():
        now, state, losses = params, optimizer.init(params), []
        for _ in range(STEPS):
            now, state, loss = step(now, state, batch)
            losses.append(loss)
        return jax.device_get(losses)

    fit()
    train()
    curved, plain = least(fit, train)
    return {
        "surface programs": count.value,
        "surface seconds": whole,
        "surface over forwards": whole / alone,
        "curve step seconds": curved / STEPS,
        "curve step over gradient step": curved / plain,
    }


def main() -> dict[str, dict[str, float]]:
    results = {"mlp": measure(transforms.mlp), "cnn": measure(transforms.cnn)}
    for name in results["mlp"]:
        print(f"   {name:32} {results['mlp'][name]:9.3f} {results['cnn'][name]:9.3f}")
    return results
