"""The Lanczos steps of `eigsh` with its basis in parts, of which the empty ones are not read.

26 steps in 32 rows, against random vectors instead of products: whole, and in parts of 8 rows, in
turn. The processor's seconds of the steps (the least of several runs) and of compiling a step, and
the compiler's temporary memory in vectors.
"""

import time
from typing import Any

import jax

from flatjax.linalg.krylov import _step as krylov

SIZES = {True: (1 << 14,), False: (1 << 18, 1 << 20, 1 << 22, 1 << 23)}
ROWS, STEPS = 32, 26
REPEATS = {True: 1, False: 3}
KINDS = {"whole": None, "parts": krylov._EACH}


def main(rows: Any, short: bool = False) -> dict[str, Any]:
    """By size, and whether the basis is in parts."""
    return {f"{n}": rows.get(f"{n}", lambda n=n: both(n, REPEATS[short])) for n in SIZES[short]}


def both(size: int, repeats: int) -> dict[str, Any]:
    """The two at one size."""
    key = jax.random.key(0)
    v = jax.random.normal(key, (size,))
    v = v / jax.numpy.linalg.norm(v)
    vectors = [jax.random.normal(jax.random.fold_in(key, i), (size,)) for i in range(STEPS)]
    found: dict[str, Any] = {}
    for kind, each in KINDS.items():
        state, begin = krylov.start(v, ROWS, key, None, each), time.process_time()
        compiled = krylov._compiled_step.lower(state, v).compile()
        spent = time.process_time() - begin
        memory = compiled.memory_analysis()
        if memory is None:
            raise RuntimeError(f"{jax.default_backend()} does not report the memory of a program.")
        held = memory.temp_size_in_bytes / v.nbytes
        found[kind] = {"compile": spent, "vectors": held, "seconds": float("inf")}
    for _ in range(repeats):
        for kind, each in KINDS.items():
            state, spent = krylov.start(v, ROWS, key, None, each), 0.0
            for w in vectors:
                w = jax.block_until_ready(w + 0)
                begin = time.process_time()
                state = jax.block_until_ready(krylov._compiled_step(state, w))
                spent += time.process_time() - begin
            found[kind]["seconds"] = min(found[kind]["seconds"], spent)
    print(f"   {size}: {found}", flush=True)
    return found
