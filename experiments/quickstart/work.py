"""The work of the quickstart: train both arms, measure, write everything down."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.data.images import load_data
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.runs import rundir
from experiments.lib.runs.identity import to_dict
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.progress import say
from experiments.lib.training.curvature import Curvature, CurvatureConfig
from experiments.lib.training.measurements import Measurement
from experiments.lib.training.train import train
from experiments.quickstart import ARMS, outcome
from experiments.quickstart.table import Run

if TYPE_CHECKING:
    from experiments.quickstart import Config


def compare(config: Config, out: Path) -> None:
    """Does what is not done yet: every arm and seed, then the table, the figures, the report."""
    rundir.record_environment(out)
    runs: list[Run] = []
    for seed in config.seed_range():
        instruments = _Instruments(config, seed)
        runs += [_run(config, out, arm, seed, instruments) for arm in ARMS]
    outcome.write(out, _without_paths(config), runs, marks=marks(config))


def marks(config: Config) -> dict[str, float | None]:
    """The values that the figures mark; see `pictures.Marks`."""
    run = config.run(ARMS[0], config.first_seed).train
    o = run.optimizer
    plain = o.name == "sgd" and not o.momentum and not o.weight_decay and o.schedule == "constant"
    stable = 2 / o.learning_rate if plain else None
    return {"stop_train_loss": run.stop_train_loss, "stable": stable}


def _run(config: Config, out: Path, arm: str, seed: int, instruments: _Instruments) -> Any:
    """One trained and measured network, from its folder as far as it got there."""
    folder = out / f"{arm}-{seed}"
    final = folder / "measured.json"
    then = "the final state is measured again"
    measured = rundir.read_json(final, step=int, then=then)
    if measured is None or not read_metrics(folder, event="eval"):
        along = Measurement(
            "curvature",
            lambda snapshot, carry: (instruments.numbers(snapshot), carry),
            every=config.measure_every,
            steps=config.measure_at,
            at_end=False,
        )
        result = train(
            folder,
            config.run(arm, seed),
            measurements=[along],
            extra={"curvature": to_dict(config.curvature)},
            quiet=config.quiet,
        )
        say(f"{folder}: measuring the final state", enabled=not config.quiet)
        measured = instruments.everything(result)
        rundir.write_json(final, {"step": result.step, "stopped_by": result.reason} | measured)
    return Run(
        arm=arm,
        seed=seed,
        final=rundir.read_json(final),
        evaluations=read_metrics(folder, event="eval"),
        curvature=read_metrics(folder, event="curvature"),
    )


class _Instruments:
    """The measuring device of one seed's data, made at its first use."""

    def __init__(self, config: Config, seed: int):
        self._config, self._seed = config, seed
        self._made: Curvature | None = None

    def _curvature(self) -> Curvature:
        if self._made is None:
            run = self._config.run("sgd", self._seed)
            self._made = instrument(run.data, run.model, run.train.loss, self._config.curvature)
        return self._made

    def numbers(self, state: Any) -> dict[str, Any]:
        return self._curvature().numbers(state.params, state.model_state)

    def everything(self, state: Any) -> dict[str, Any]:
        return self._curvature().everything(state.params, state.model_state)


def instrument(data: Any, model: ModelConfig, loss: str, config: CurvatureConfig) -> Curvature:
    """The measuring device of one network on one data set."""
    loaded = load_data(data)
    return Curvature(make_model(model, loaded.num_classes), loss, loaded, config)


def _without_paths(config: Config) -> dict[str, Any]:
    """The configuration, without where things lie."""
    return to_dict(dataclasses.replace(config, out=None, data_dir=None))
