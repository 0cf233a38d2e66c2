"""What one step of each transform costs, counted in gradients, beside optax's SAM.

Floating-point operations and temporary memory are those of the compiled step (gradient and update,
without the optimiser), the time is the least of several runs. A transform that spends more on every
k-th step is compiled for each of the two kinds of step, and the mean over k is shown. The networks:
a tanh MLP, and a small convolutional network. The last rows are peers: ``optax.contrib.sam``, and
the penalty as one would write it, the gradient of the squared norm of the gradient.
"""

import time

import jax
import jax.numpy as jnp
import optax

import flatjax
from flatjax.losses import softmax_cross_entropy

EXAMPLES, CLASSES, REPEATS = 128, 10, 20
PERIOD = {"looksam, every 5": 5, "sam, every 5": 5, "fisher_penalty, every 10, 1/4": 10}


def mlp():
    """Four layers of 256, inputs (n, 256)."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(256, 256)] * 4 + [(256, CLASSES)]
    params = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)]

    def model_fn(params, inputs):
        for weight in params[:-1]:
            inputs = jnp.tanh(inputs @ weight)
        return inputs @ params[-1]

    return model_fn, params, jnp.ones((EXAMPLES, 256))


def cnn():
    """Two 3 x 3 convolutions with 16 and 32 channels, pooling, a dense layer; inputs 16 x 16."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (32, CLASSES)]
    params = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def model_fn(params, inputs):
        for kernel in params[:2]:
            inputs = jax.lax.conv_general_dilated(
                inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            inputs = jax.nn.gelu(inputs)
        return inputs.mean(axis=(1, 2)) @ params[2]

    return model_fn, params, jnp.ones((EXAMPLES, 16, 16, 3))


def compiled_cost(function, *args) -> dict[str, float]:
    compiled = jax.jit(function).lower(*args).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    if memory is None or cost is None:
        raise RuntimeError(f"{jax.default_backend()} does not report the cost of a program.")
    return {
        "flops": float(cost["flops"]),
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "seconds": best_seconds(compiled, *args),
    }


def best_seconds(compiled, *args) -> float:
    """The least seconds of several runs: what the machine can do when nothing disturbs it."""
    jax.block_until_ready(compiled(*args))
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        found.append(time.perf_counter() - begin)
    return min(found)


def measure(make) -> dict[str, dict[str, float]]:
    """The table of one network."""
    model_fn, params, inputs = make()
    batch = (inputs, jnp.zeros(EXAMPLES, jnp.int32))

    def loss_fn(params, batch):
        return softmax_cross_entropy(model_fn(params, batch[0]), batch[1]).mean()

    def naive(params, batch):
        def penalised(p):
            gradient = jax.grad(loss_fn)(p, batch)
            return loss_fn(p, batch) + 0.1 * optax.tree.norm(gradient, squared=True)

        return jax.grad(penalised)(params)

    def step_cost(tx, count, **options):
        # The count is a constant of the program, so that the branch not taken is dropped.
        state = tx.init(params)
        if "count" in getattr(state, "_fields", ()):
            state = state._replace(count=jnp.int32(count))

        def step(params, batch):
            gradient = jax.grad(loss_fn)(params, batch)
            grad_fn = options.get("grad_fn", lambda p, *_: jax.grad(loss_fn)(p, batch))
            extra = {} if options.get("plain") else {"batch": batch}
            return tx.update(gradient, state, params, grad_fn=grad_fn, **extra)

        return compiled_cost(step, params, batch)

    xent = softmax_cross_entropy
    transforms = {
        "sam": flatjax.sam(0.05),
        "sam, p = 1.5": flatjax.sam(0.05, ascent=flatjax.Ascent(p=1.5)),
        "sam, second order": flatjax.sam(0.05, second_order=True),
        "sam, every 5": flatjax.sam(0.05, every=5),
        "sam, 4 groups (vmap)": flatjax.sam(0.05, groups=4, loss_fn=loss_fn, group_mode="vmap"),
        "sam, 4 groups (loop)": flatjax.sam(0.05, groups=4, loss_fn=loss_fn, group_mode="loop"),
        "asam": flatjax.sam(0.5, ascent=flatjax.Ascent(adaptive=True)),
        "gsam": flatjax.gsam(0.05),
        "wsam": flatjax.wsam(0.05),
        "friendly_sam": flatjax.friendly_sam(0.05),
        "looksam, every 5": flatjax.looksam(0.05, every=5),
        "momentum_sam": flatjax.momentum_sam(0.1),
        "gradient_norm_penalty": flatjax.gradient_norm_penalty(0.05),
        "gradient_penalty": flatjax.gradient_penalty(0.1),
        "gradient_penalty, forward": flatjax.gradient_penalty(0.1, mode="forward"),
        "gradient_penalty, central": flatjax.gradient_penalty(0.1, mode="central"),
        "fisher_penalty, every 1": flatjax.fisher_penalty(model_fn, xent, coef=0.1, every=1),
        "fisher_penalty, every 10, 1/4": flatjax.fisher_penalty(
            model_fn, xent, coef=0.1, every=10, sub_batch=EXAMPLES // 4
        ),
        "input_gradient_penalty": flatjax.input_gradient_penalty(model_fn, xent, coef=0.1),
    }
    peer = optax.contrib.sam(
        optax.identity(),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
        opaque_mode=True,
    )
    results = {"gradient": compiled_cost(jax.grad(loss_fn), params, batch)}
    for name, tx in transforms.items():
        period = PERIOD.get(name, 1)
        costs = [step_cost(tx, count) for count in range(min(period, 2))]
        mean = (costs[0]["flops"] + (period - 1) * costs[-1]["flops"]) / period
        peak = max(cost["temporary_mb"] for cost in costs)
        took = (costs[0]["seconds"] + (period - 1) * costs[-1]["seconds"]) / period
        results[name] = {"flops": mean, "temporary_mb": peak, "seconds": took}
    results["optax.contrib.sam"] = step_cost(peer, 0, plain=True)
    results["naive double backward"] = compiled_cost(naive, params, batch)
    # The compiler counts the body of a loop once; the arithmetic is that of all groups at once.
    results["sam, 4 groups (loop)"]["flops"] = results["sam, 4 groups (vmap)"]["flops"]
    one = results["gradient"]
    for cost in results.values():
        cost["gradients"] = cost["flops"] / one["flops"]
        cost["memory_ratio"] = cost["temporary_mb"] / one["temporary_mb"]
        cost["time_ratio"] = cost["seconds"] / one["seconds"]
    return results


def main() -> dict[str, dict[str, dict[str, float]]]:
    results = {"mlp": measure(mlp), "cnn": measure(cnn)}
    print(f"   {'':32} {'gradients':>9} {'memory':>7}   {'gradients':>9} {'memory':>7}")
    for name, cost in results["mlp"].items():
        other = results["cnn"][name]
        print(
            f"   {name:32} {cost['gradients']:9.2f} {cost['memory_ratio']:7.2f}"
            f"   {other['gradients']:9.2f} {other['memory_ratio']:7.2f}"
        )
    print(f"   {'':32} {'MLP':>17}   {'convolutional':>17}")
    return results
