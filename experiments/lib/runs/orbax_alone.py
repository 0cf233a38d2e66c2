"""Orbax, set up for a process that saves and loads by itself, whoever else is at work.

In orbax's own way all processes of a run save together, and when one cannot, the others wait for it
in a barrier.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

import jax
import orbax.checkpoint as writing
from orbax.checkpoint import v1 as ocp


def writer() -> Any:
    """Orbax's writer, for one process alone.

    Of orbax's first interface: in the second one (v1) all processes of a run must save together,
    and when one cannot, the others wait for it in a barrier.
    """
    leave_abandoned_unreported()
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
    return writing.AsyncCheckpointer(handler, multiprocessing_options=options)


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


@functools.cache
def leave_abandoned_unreported() -> None:
    """Keeps quiet about reads and writes that orbax leaves in flight when one of many fails.

    Each of them reports its own failure, or a closed event loop, pages of them and possibly much
    later; the failure itself is raised in the ordinary way.
    """
    before = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
            before(unraisable)

    def not_abandoned(record):
        return "async_deserialize" not in record.getMessage()

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(not_abandoned)
    logging.getLogger("absl").addFilter(_raised_anyway)


def _raised_anyway(record: logging.LogRecord) -> bool:
    """Drops the pages that orbax logs, thread by thread, of a failed save that `wait` raises."""
    return "raised an exception" not in record.getMessage() and not record.exc_info
