"""A head of 50,304 classes with and without its logits: temporary memory, flops and time.

One layer of 256 and a vocabulary of 50,304 (12.9 million parameters of the head) on 4 sequences of
512 tokens (short: 4 of 64): the gradient, the value with the gradient, products with the
Gauss-Newton matrix (recomputed and linearised) and the Hessian, by logits and by
`flatjax.losses.LinearHead`. Bytes and flops are the compiler's; flops of a loop are counted for one
round, so they are those of the logits and the head's are stated in matrix products of the head by
the docs. Times are the processor's seconds of one thread, the least of several runs, the two taken
in turn.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import flatjax
from flatjax.losses import LinearHead

WIDTH, CLASSES, SEQUENCES = 256, 50_304, 4
TOKENS = {True: 64, False: 512}
REPEATS = 3
LOSS = flatjax.softmax_cross_entropy(per="token")


def head(params: Any, x: jax.Array) -> LinearHead:
    """The network without its logits."""
    return LinearHead(jnp.tanh(x @ params["hidden"]), params["out"])


def logits(params: Any, x: jax.Array) -> jax.Array:
    """The network with them."""
    return head(params, x).logits()


def loss_fn(model: Any) -> Callable[[Any, Any], Any]:
    """The mean over all tokens."""
    return lambda params, batch: LOSS.mean(model(params, batch[0]), batch[1])


def quantities(model: Any, params: Any, batch: Any, v: Any) -> dict[str, tuple[Callable, tuple]]:
    """Functions and what they are called with, by name."""
    ggn = flatjax.ggn(model, LOSS, params, batch)
    value = lambda p, b: loss_fn(model)(p, b).value  # noqa: E731
    multiply = lambda op, v: op.mv(v)  # noqa: E731
    return {
        "gradient": (jax.grad(value), (params, batch)),
        "value and gradient": (jax.value_and_grad(value), (params, batch)),
        "ggn": (multiply, (ggn, v)),
        "ggn, linearised": (multiply, (ggn.linearize(), v)),
        "hessian": (multiply, (flatjax.hessian(loss_fn(model), params, batch), v)),
    }


def main(short: bool = False) -> dict[str, dict[str, Any]]:
    """By quantity, bytes and seconds of both forms."""
    keys = jax.random.split(jax.random.key(0), 5)
    normal = jax.random.normal
    params = {
        "hidden": normal(keys[0], (WIDTH, WIDTH)) / 16,
        "out": normal(keys[1], (WIDTH, CLASSES)) / 16,
    }
    shape = (SEQUENCES, TOKENS[short])
    batch = normal(keys[2], (*shape, WIDTH)), jax.random.randint(keys[3], shape, 0, CLASSES)
    v = jax.tree.map(lambda a: normal(keys[4], a.shape), params)
    forms = {
        "logits": quantities(logits, params, batch, v),
        "head": quantities(head, params, batch, v),
    }
    out: dict[str, dict[str, Any]] = {}
    for name in forms["logits"]:
        row: dict[str, Any] = {"seconds": {form: float("inf") for form in forms}, "temporary": {}}
        compiled: dict[str, Any] = {}
        for form, found in forms.items():
            fn, given = found[name]
            compiled[form] = jax.jit(fn).lower(*given).compile()
            row["temporary"][form] = compiled[form].memory_analysis().temp_size_in_bytes
            jax.block_until_ready(compiled[form](*given))
        for _ in range(REPEATS):
            for form, program in compiled.items():
                begin = time.process_time()
                jax.block_until_ready(program(*forms[form][name][1]))
                spent = time.process_time() - begin
                row["seconds"][form] = min(row["seconds"][form], spent)
        row["ratio"] = row["seconds"]["head"] / row["seconds"]["logits"]
        out[name] = row
        print(f"   {name}: {row}", flush=True)
    return out
