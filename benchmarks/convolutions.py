"""Convolutions and their derivatives on a CPU: XLA's own beside the forms of flatjax.

Every row is one operation of a program: a convolution, one of its gradients, or the derivative of
its kernel gradient. XLA's own, at a program's entry, and every form that fits are timed in turn in
one process, and the least of the repetitions is kept; once with one core and once with two. The
rule of `flatjax/_shifted_products.py` is read from the table, and must lose nowhere in it.
"""

import math
import multiprocessing
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from flatjax import _shifted_products as shifted

REPEATS, MOST_SECONDS, MOST_TERMS = 15, 3.0, 64
# Images, their side, inputs, outputs, window, stride, groups.
PLAIN = (
    (32, 28, 1, 16, 3, 1, 1),
    (128, 28, 1, 32, 5, 1, 1),
    (128, 28, 1, 64, 3, 2, 1),
    (32, 28, 3, 16, 5, 1, 1),
    (128, 32, 3, 16, 3, 1, 1),
    (128, 28, 8, 16, 3, 1, 1),
    (128, 14, 16, 32, 3, 2, 1),
    (32, 32, 64, 64, 3, 1, 1),
    (32, 8, 128, 128, 3, 1, 1),
    (32, 16, 32, 32, 7, 1, 1),
    (32, 16, 32, 64, 1, 1, 1),
    (128, 14, 16, 64, 1, 1, 1),
    (32, 16, 32, 64, 1, 2, 1),
    (128, 8, 8, 8, 8, 8, 1),
)
GROUPED = (
    (32, 16, 32, 32, 3, 1, 32),
    (32, 16, 32, 32, 7, 1, 32),
    (32, 16, 32, 32, 3, 2, 32),
    (128, 8, 64, 64, 3, 1, 64),
    (32, 8, 16, 32, 3, 1, 16),
    (32, 8, 32, 32, 5, 1, 16),
    (32, 8, 32, 32, 3, 1, 8),
    (32, 16, 32, 32, 3, 1, 4),
    (32, 16, 64, 64, 3, 1, 2),
    (32, 16, 32, 32, 1, 1, 4),
)
KINDS = ("forward", "kernel gradient", "input gradient")


def main(rows, short: bool = False) -> list[dict[str, Any]]:
    """One row for each operation and number of cores."""
    out = []
    available = sorted(os.sched_getaffinity(0))
    for cores in (1, 2):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, os.sched_setaffinity, (0, available[:cores])) as pool:
            for case in (PLAIN[2:8:2] + GROUPED[::4]) if short else PLAIN + GROUPED:
                key = f"{cores} {case}"
                found = rows.get(key, lambda c=case: pool.apply(measure, (c,)))
                out += [{"cores": cores, "case": list(case), **row} for row in found]
                for row in found:
                    print(f"   {key} {row['operation']}: {described(row)}", flush=True)
    return out


def described(row: dict[str, Any]) -> str:
    """The seconds of a row in one line."""
    times = (f"{name} {1e3 * s:.2f} ms" for name, s in row["seconds"].items())
    return f"{', '.join(times)}; chosen {row['chosen']}"


def measure(case) -> list[dict[str, Any]]:
    """The operations of one network of one convolution."""
    images, side, inputs, outputs, window, stride, groups = case

    def convolve(kernel, x):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME",
            dimension_numbers=layout, feature_group_count=groups,
        )  # fmt: skip

    def loss(kernel, x):
        return jnp.sin(convolve(kernel, x)).sum()

    def penalty(kernel, x):
        return (jax.grad(loss)(kernel, x) ** 2).sum()

    kernel = jnp.zeros((window, window, inputs // groups, outputs))
    x = jnp.zeros((images, side, side, inputs))
    found = operations(jax.grad(loss, (0, 1)), kernel, x)
    named = list(zip(KINDS, found, strict=True))
    seen = {signature(equation) for equation in found}
    for equation in operations(jax.grad(penalty, (0, 1)), kernel, x):
        if groups == 1 and signature(equation) not in seen:
            named.append(("derivative of the kernel gradient", equation))
            seen.add(signature(equation))
    return [{"operation": name, **timed(equation)} for name, equation in named]


def operations(fn, *args) -> list[Any]:
    """The convolutions of a traced function."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is primitives.conv_general_dilated_p:
                yield equation
            for inner in core.jaxprs_in_params(equation.params):
                yield from inside(getattr(inner, "jaxpr", inner))

    return list(inside(jax.make_jaxpr(fn)(*args).jaxpr))


def signature(equation) -> str:
    """What tells two operations apart."""
    return str(([v.aval for v in equation.invars], equation.params))


def timed(equation) -> dict[str, Any]:
    """Least seconds of XLA's own and of every form that fits, and the form that is chosen."""
    avals = [v.aval for v in equation.invars]
    made, params = equation.outvars[0].aval, equation.params
    layout = params["dimension_numbers"]
    generator = np.random.default_rng(0)
    args = [jnp.asarray(generator.normal(size=a.shape), a.dtype) for a in avals]
    forms: dict[str, Any] = {"XLA": lambda *a: primitives.conv_general_dilated_p.bind(*a, **params)}
    terms = math.prod(avals[1].shape[i] for i in layout.rhs_spec[2:])
    terms *= avals[1].shape[layout.rhs_spec[1]]
    places = math.prod(made.shape[i] for i in layout.out_spec[2:])
    image = math.prod(avals[0].shape[i] for i in layout.lhs_spec[2:])
    window = math.prod(avals[1].shape[i] for i in layout.rhs_spec[2:])
    if terms <= 2 * MOST_TERMS and params["batch_group_count"] == 1:
        forms["window"] = shifted.convolution(params, "window")
    if places <= MOST_TERMS:
        forms["places"] = shifted.convolution(params, "places")
    alone = params["batch_group_count"] * params["feature_group_count"] == 1
    if alone and set(params["window_strides"]) == {1} and image < window:
        forms["swapped"] = shifted.convolution(params, "swapped")
    programs = {name: jax.jit(form).lower(*args).compile() for name, form in forms.items()}
    best = dict.fromkeys(programs, math.inf)
    for _ in range(REPEATS):
        for name, program in programs.items():
            if best[name] < math.inf and best[name] > MOST_SECONDS / REPEATS:
                continue  # once is enough
            begin = time.perf_counter()
            jax.block_until_ready(program(*args))
            best[name] = min(best[name], time.perf_counter() - begin)
    return {"seconds": best, "chosen": shifted.form_of(params, avals[0], avals[1], made)}
