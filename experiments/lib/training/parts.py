"""What a run is made of, each part made when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax

from experiments.lib.data.images import Dataset, load_data
from experiments.lib.nets.models import Model, make_model
from experiments.lib.runs import checkpoint
from experiments.lib.training.config import RunConfig
from experiments.lib.training.measurements import Measurement, Snapshot
from experiments.lib.training.optimizers import make_optimizer
from experiments.lib.training.step import TrainState, init_state


class Ingredients:
    """Data, network, optimiser and first state of a run.

    Where there is a checkpoint, the shapes come from it: a complete run is looked at without
    opening its data.
    """

    def __init__(
        self,
        config: RunConfig,
        optimizer: optax.GradientTransformation | None,
        measurements: Sequence[Measurement],
        checkpoints: Path,
    ):
        """See `experiments.lib.train.train`; `checkpoints` is the folder of the checkpoints."""
        self._config, self._optimizer = config, optimizer
        self._measurements, self._checkpoints = measurements, checkpoints

    @functools.cached_property
    def data(self) -> Dataset:
        """The data set."""
        return load_data(self._config.data)

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, ...], int, int]:
        """Input shape, number of classes, number of training examples."""
        for path in reversed(checkpoint.list_steps(self._checkpoints)):
            try:
                shape, classes, examples = checkpoint.read_meta(path)["shapes"]
                return tuple(shape), classes, examples
            except Exception:  # damaged: `Checkpoints.restore` will tell
                continue
        return self.data.input_shape, self.data.num_classes, len(self.data.train)

    @functools.cached_property
    def total_steps(self) -> int:
        """The updates after which the run ends at the latest."""
        t, examples = self._config.train, self.shapes[2]
        per_epoch = examples // (t.batch_size or examples)
        limits = [t.steps, None if t.epochs is None else round(t.epochs * per_epoch)]
        return min(limit for limit in limits if limit is not None)

    @functools.cached_property
    def model(self) -> Model:
        """The network."""
        return make_model(self._config.model, self.shapes[1])

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser."""
        if self._optimizer is not None:
            return self._optimizer
        return make_optimizer(self._config.train.optimizer, self.total_steps)

    def initial(self) -> dict[str, Any]:
        """The state and the measurements' carries before the first update; traceable."""
        state = init_state(self.model, self.optimizer, self.shapes[0], self._config.train.seed)
        carries = {m.name: m.init(snapshot_of(0, state)) for m in self._measurements}
        return {"train": state, "carries": carries}


def snapshot_of(step: Any, state: TrainState) -> Snapshot:
    """What measurements see of a state."""
    return Snapshot(step, state.params, state.model_state, state.opt_state)
