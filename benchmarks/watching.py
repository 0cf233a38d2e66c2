"""What progress, a callback, a time limit and a look at Ctrl-C cost beside a product of 10 ms.

A product that sleeps for 10 ms, and all four options. Counted are the processor's seconds from the
moment at which a loop finds that a report is wanted to the end of the report, per product; and
those of the drawings of a bar by rich in the time that the products take. The sum must be below 1 %
of it: `share`. The least of several runs: other work on the machine only adds.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import flatjax
from flatjax import _progress as progress
from flatjax import _watching as watching
from flatjax.operators._base import Operator

SECONDS, SIZE, REPEATS = 0.01, 10_000, 5


class Sleeping(Operator):
    """A diagonal whose product takes a while, in which the processor has nothing to do."""

    host_driven = True

    def __init__(self, diagonal: jax.Array, seconds: float):
        self._diagonal, self._seconds = diagonal, seconds
        self.products = 0

    @property
    def structure(self) -> Any:
        return jax.ShapeDtypeStruct(self._diagonal.shape, self._diagonal.dtype)

    def mv(self, v: Any) -> Any:
        self.products += 1
        time.sleep(self._seconds)
        return self._diagonal * v


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Accounts:
    """The seconds that the reports of a watch take, their preparation included."""

    def __init__(self):
        self.seconds, self.reports, self._begin = 0.0, 0, 0.0

    def watched(self) -> Any:
        """A context in which they are counted."""
        wants, report = watching._Watching.wants, watching._Watching.report

        def first(watch):
            self._begin = time.thread_time()
            return wants(watch)

        def last(watch, *args, **kwargs):
            report(watch, *args, **kwargs)
            self.seconds += time.thread_time() - self._begin
            self.reports += 1

        return mock.patch.multiple(watching._Watching, wants=first, report=last)


def drawing() -> float:
    """The processor's seconds to draw a bar once."""
    with mock.patch.object(sys, "stderr", Terminal()):
        bar = progress.display("eigsh")
        found = []
        for step in range(20):
            bar.update(step, 100.0, f"{step} products, worst residual 1.0e-03, about 12 s left")
            begin = time.thread_time()
            progress.Bar._shared.refresh()
            found.append(time.thread_time() - begin)
        bar.close("")
    return min(found)


def main(short: bool = False) -> dict[str, dict[str, Any]]:
    """By function."""
    diagonal = jnp.concatenate([jnp.geomspace(100, 10, 5), jnp.linspace(-1, 1, SIZE - 5)])
    op, key = Sleeping(diagonal, SECONDS), jax.random.key(0)
    calls: dict[str, Callable[..., Any]] = {
        "eigsh": lambda **o: flatjax.eigsh(op, 5, key=key, tol=1e-5, **o),
        "trace": lambda **o: flatjax.trace(op, key=key, num_products=100, **o),
        "spectral_density": lambda **o: flatjax.spectral_density(op, key=key, **o),
        "spectrum": lambda **o: flatjax.spectrum(op, key=key, k=5, max_steps=80, **o),
    }
    options = {"max_seconds": 1e6, "on_interrupt": "return", "callback": lambda *_: False}
    once = drawing()
    out: dict[str, dict[str, Any]] = {"drawing": {"seconds": once}}
    for name, call in calls.items():
        call(**options)  # compiles
        rows = []
        for _ in range(1 if short else REPEATS):
            accounts, op.products = Accounts(), 0
            with accounts.watched(), mock.patch.object(sys, "stderr", io.StringIO()):
                call(progress=True, **options)
            rows.append((accounts.seconds / op.products, accounts.reports, op.products))
        each, reports, products = min(rows)
        share = each / SECONDS + once * progress._PER_SECOND
        out[name] = {
            "products": products,
            "reports": reports,
            "report_seconds_per_product": each,
            "share": share,
        }
        print(f"   {name}: {products} products, {reports} reports, {share:.2%}", flush=True)
    return out
