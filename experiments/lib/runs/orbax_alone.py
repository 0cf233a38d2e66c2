"""Orbax, set up for a process that saves and loads by itself, whoever else is at work.

In orbax's own way all processes of a run save together, and when one cannot, the others wait for it
in a barrier.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as writing
from orbax.checkpoint import v1 as ocp


def writer() -> Any:
    """Orbax's writer, for one process alone; it returns when all is written.

    Of orbax's first interface: in the second one (v1) all processes of a run must save together,
    and when one cannot, the others wait for it in a barrier.
    """
    options = writing.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        options = writing.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    handler = writing.CompositeCheckpointHandler(
        state=writing.StandardCheckpointHandler(multiprocessing_options=options),
        meta=writing.JsonCheckpointHandler(multiprocessing_options=options),
        composite_options=writing.CompositeOptions(multiprocessing_options=options),
    )
    return writing.Checkpointer(handler, multiprocessing_options=options)


def context() -> ocp.Context:
    """Orbax's settings: `meta` as readable JSON, not as arrays; each process acts for itself."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    if jax.process_count() > 1:
        me = jax.process_index()
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
        context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


@contextlib.contextmanager
def failures_unlogged() -> Iterator[None]:
    """Within it orbax logs nothing about a failed save, which it raises as well.

    Its log has a page for each of its threads. The writes that it leaves in flight when one of many
    fails report a closed event loop, now or when they are collected, possibly much later: so after
    a failure that stays unreported.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
            before(unraisable)

    logger.addFilter(_is_no_failure)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.removeFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return "raised an exception" not in record.getMessage() and not record.exc_info
