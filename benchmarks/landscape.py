"""What pictures of the loss surface cost beside the passes that they are made of.

A surface of 51 x 51 points beside as many calls of the jitted loss, and a step along a Bezier curve
beside a gradient with an SGD update of one network, on the two networks of `benchmarks.transforms`.
Both of a pair run in turn, the surface in three parts; the seconds are the least of several runs,
of one in the short form, by the wall's clock and by the processor's, which other work on the
machine disturbs less. Programs and points are counted: those of one device, and of each of four
that hold params and data whole.
"""

import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from benchmarks import transforms
from flatjax import parallel
from flatjax.losses import softmax_cross_entropy
from tests.compilations import count_compilations

POINTS, PARTS, STEPS, REPEATS, DEVICES = 51, 3, 50, 3, 4


def least(repeats: int, *functions) -> np.ndarray:
    """The least seconds of each function, by the wall's clock and the processor's, run in turn."""
    found = []
    for _ in range(repeats):
        for function in functions:
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            end = time.perf_counter(), time.process_time()
            found.append((end[0] - begin[0], end[1] - begin[1]))
    return np.array(found).reshape(repeats, len(functions), 2).min(axis=0)


def measure(make, repeats: int) -> dict[str, float]:
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

    def surface(rows):
        return flatjax.loss_surface(
            loss_fn, params, batch, first=first, second=second, positions=rows,
            other_positions=positions,
        ).losses  # fmt: skip

    def forwards(num):
        return jax.device_get([forward(params, batch) for _ in range(num)])

    with count_compilations() as count:
        surface(positions[:1])
    forwards(1)
    parts = [
        least(repeats, lambda r=rows: surface(r), lambda r=rows: forwards(len(r) * POINTS))
        for rows in np.split(positions, PARTS)
    ]
    whole, alone = np.sum(parts, axis=0)

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
    curved, plain = least(REPEATS, fit, train)
    return {
        "surface programs": count.value,
        "surface seconds": whole[0],
        "surface over forwards": whole[0] / alone[0],
        "surface over forwards, processor": whole[1] / alone[1],
        "curve step seconds": curved[0] / STEPS,
        "curve step over gradient step": curved[0] / plain[0],
        "curve step over gradient step, processor": curved[1] / plain[1],
    }


def points_per_device(devices: int) -> float:
    """How often each device evaluates the loss for a surface; in a process of its own."""
    jax.config.update("jax_num_cpu_devices", devices)
    calls = []

    def seen(a):
        calls.append(1)
        return a

    def loss_fn(params, _):
        out = jnp.sum(params**2)
        return jax.pure_callback(seen, jax.ShapeDtypeStruct(out.shape, out.dtype), out)

    params = parallel.replicate(jnp.ones(2), parallel.make_mesh(devices))
    first, second = jnp.eye(2)
    positions = np.linspace(-1, 1, POINTS, dtype=np.float32)
    flatjax.loss_surface(loss_fn, params, None, first=first, second=second, positions=positions)
    return len(calls) / devices


def counted(devices: int) -> float:
    """The same, started from here: the number of devices is fixed with the first use of JAX."""
    code = f"from benchmarks import landscape; print(landscape.points_per_device({devices}))"
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(short: bool = False) -> dict[str, dict[str, float]]:
    repeats = 1 if short else REPEATS
    results = {name: measure(getattr(transforms, name), repeats) for name in ("mlp", "cnn")}
    each = {f"points per device of {n}": counted(n) for n in (1, DEVICES)}
    results = {name: found | each for name, found in results.items()}
    for name in results["mlp"]:
        print(f"   {name:42} {results['mlp'][name]:9.3f} {results['cnn'][name]:9.3f}")
    return results
