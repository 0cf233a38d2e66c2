"""Train with SGD and with SAM on partly wrong labels, and measure how flat both end.

A small CNN learns the offline handwritten digits, 20 % of whose labels are wrong, once with SGD
and once with SAM (Foret et al., ICLR 2021, arXiv:2010.01412). Both stop at the same training loss:
driven to zero, cross-entropy makes every curvature vanish. Along the way and at the end the
Hessian, the gradient covariance K and the Fisher information F are measured.

    python -m experiments quickstart                      # some 150 seconds of CPU time
    python -m experiments quickstart --label-noise 0      # all labels right
    python -m experiments quickstart --checkpoint PATH --model resnet --data.name cifar10

The folder of the run (default runs/quickstart/cpu) then holds report.html, summary.json, the
figures, and a folder for each network with its metrics and checkpoints. Found with `--seeds 5`,
means and standard errors: a largest Hessian eigenvalue of 9.7 +- 0.4 after SAM and 28.9 +- 1.2
after SGD, and test accuracies of 94.8 +- 0.2 % and 92.7 +- 0.7 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from experiments.lib.data.images import DataConfig
from experiments.lib.nets.config import ModelConfig
from experiments.lib.runs.identity import identity, to_dict
from experiments.lib.training.config import OptimizerConfig, RunConfig, TrainConfig
from experiments.lib.training.curvature import CurvatureConfig
from experiments.registry import Experiment, Options

ARMS = ("sgd", "sam")
DEFAULT_LABEL_NOISE = 0.2


@dataclass(frozen=True, kw_only=True)
class Network(ModelConfig):
    """The network."""

    name: Annotated[
        Literal["mlp", "cnn", "resnet", "wide_resnet", "transformer"],
        tyro.conf.arg(aliases=("--model",)),
    ] = "cnn"
    """mlp, cnn, resnet, wide_resnet or transformer."""


@dataclass(frozen=True, kw_only=True)
class Data(DataConfig):
    """The data."""

    label_noise: tyro.conf.Suppress[float] = 0.0
    """An option of its own, `--label-noise`."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The quickstart's options."""

    seeds: int = 1
    """How many seeds to run."""

    first_seed: int = 0
    """The first seed; the others follow it."""

    checkpoint: str | None = field(default=None, metadata={"identity": False})
    """Measure this checkpoint instead of training: a run's folder, an orbax checkpoint or a flax
    msgpack file. One not written here needs --model and its options, --data and --train.loss."""

    step: int | Literal["best"] | None = field(default=None, metadata={"identity": False})
    """Which of several checkpoints in the folder: a step, or best; default the last."""

    label_noise: float | None = None
    """Fraction of the training examples with a wrong label; default 0.2, and for --checkpoint what
    it was trained with, or 0 where it does not say."""

    rho: float = 0.1
    """SAM's radius."""

    stop_train_loss: float | None = None
    """Both stop at this training loss; default twice the fraction of wrong labels, where about half
    of them are learned by heart, and 0.05 without any."""

    measure_every: int = 200
    """Measure the curvature every so many updates ..."""

    measure_at: tuple[int, ...] = (20, 50, 100)
    """... and after these."""

    data: Data = field(default_factory=Data)
    """The data."""

    model: Network = field(default_factory=Network)
    """The network."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=3000,
            batch_size=64,
            eval_every=10,
            optimizer=OptimizerConfig(learning_rate=0.05),
        )
    )
    """Training; SAM's is the same with a perturbation of radius rho."""

    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
    """The measurements."""

    def run(self, arm: str, seed: int) -> RunConfig:
        """The training run of one arm and seed."""
        noise = self.label_noise
        if noise is None:
            noise = DEFAULT_LABEL_NOISE if self.checkpoint is None else 0.0
        stop = self.stop_train_loss
        if stop is None:
            stop = max(2 * noise, 0.05)
        radius = self.rho if arm == "sam" else None
        return RunConfig(
            data=replace(
                self.data,
                label_noise=noise,
                data_seed=self.data.data_seed + seed,
                data_dir=self.data_dir or self.data.data_dir,
            ),
            model=self.model,
            train=replace(
                self.train,
                seed=self.train.seed + seed,
                stop_train_loss=stop,
                optimizer=replace(self.train.optimizer, sam_rho=radius),
            ),
        )


PRESETS = {
    "smoke": Config(
        data=Data(train_size=96, test_size=32),
        model=Network(width=4, depth=1),
        train=TrainConfig(
            steps=6, batch_size=32, eval_every=3, log_every=2, checkpoint_every=3, tensorboard=False
        ),
        measure_every=4,
        measure_at=(),
        curvature=CurvatureConfig(
            examples=32,
            max_steps=24,
            max_probes=4,
            density_probes=2,
            density_steps=8,
            line_points=5,
        ),
    ),
    "cpu": Config(),
}


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    from experiments.lib.runs import rundir
    from experiments.lib.runs.paths import as_path
    from experiments.quickstart import outcome

    if config.checkpoint is not None:
        from experiments.quickstart.single import measure_checkpoint

        measure_checkpoint(config)
        return
    assert config.out is not None  # filled in by the command line
    out = as_path(config.out)
    with rundir.locked(out):
        described = to_dict(replace(config, out=None))
        rundir.check_config(out, described, identity(config))
        if not outcome.finished(out):
            from experiments.quickstart.work import compare

            compare(config, out)
        outcome.show(out)


EXPERIMENT = Experiment(main=main, presets=PRESETS, data_parallel=True)
