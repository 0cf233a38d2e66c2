"""Where arrays live: one device, or the batch spread over all devices of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from experiments.lib.runs import distributed
from experiments.lib.runs.errors import ExperimentError
from flatjax import parallel


class Placement:
    """Puts the state and the batches in place; the step itself is written for global arrays.

    On one device nothing is done. Data parallel, the state is replicated over a mesh with Auto
    axes and the rows of a batch, which every process has, are split over it; the compiler places
    the reductions.
    """

    def __init__(self, *, data_parallel: bool | None = None):
        """Uses all devices if `data_parallel`, else the first one.

        By default all of them in a distributed run and where there are several accelerators; the
        devices of one CPU share its cores.
        """
        self.primary = distributed.is_first()
        together = distributed.is_distributed()
        devices = jax.devices() if together else jax.local_devices()
        if data_parallel is None:
            accelerators = jax.default_backend() != "cpu" and len(devices) > 1
            data_parallel = together or accelerators
        self._mesh = parallel.make_mesh(devices=devices) if data_parallel else None

    @property
    def devices(self) -> int:
        """How many devices share a batch."""
        return 1 if self._mesh is None else self._mesh.size

    def check_batch_size(self, size: int) -> None:
        """Raises an `ExperimentError` unless a batch splits evenly over the devices."""
        if size % self.devices:
            raise ExperimentError(
                f"a batch of {size} examples does not split over {self.devices} devices: choose a "
                "multiple as batch size (or as train size, for full batches), or fewer devices"
            )

    def compiled(self, fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`jax.jit` of a function of states, which returns one."""
        if self._mesh is not None:
            options["out_shardings"] = jax.sharding.NamedSharding(self._mesh, jax.P())
        return jax.jit(fn, **options)

    def spread(self, tree: Any) -> Any:
        """Inside a compiled function: rows that all processes have, split over the devices.

        Arrays whose rows do not split evenly stay whole on every device.
        """
        if self._mesh is None:
            return tree
        sharding = jax.sharding.NamedSharding(self._mesh, jax.P("data"))

        def split(x):
            return x if len(x) % self.devices else jax.lax.with_sharding_constraint(x, sharding)

        return jax.tree.map(split, tree)

    def everywhere(self, tree: Any) -> Any:
        """A state that this process has on one device, as a compiled function takes it."""
        return tree if self._mesh is None else parallel.replicate(tree, self._mesh)

    def here(self, tree: Any) -> Any:
        """The opposite of `everywhere`."""
        return tree if self._mesh is None else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def abstract(self, tree: Any) -> Any:
        """The shapes and dtypes of a state, to be read by each process to one of its devices."""
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
