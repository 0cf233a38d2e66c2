"""A tiny experiment to try the harness on.

It trains a small network on 96 digits and can kill itself.
"""

import os
import signal
import time
from dataclasses import dataclass, field

from experiments.lib.data.images import DataConfig
from experiments.lib.nets.config import ModelConfig
from experiments.lib.training.config import OptimizerConfig, RunConfig, TrainConfig
from experiments.lib.training.measurements import Measurement
from experiments.lib.training.train import train
from experiments.registry import Experiment, Options


def small(**train_options) -> RunConfig:
    """16 updates, with what is hard to resume: wrong labels, mixup, dropout, batch norm, Adam."""
    options = {
        "steps": 16,
        "batch_size": 16,
        "log_every": 3,
        "eval_every": 8,
        "checkpoint_every": 4,
        "eval_batch_size": 96,
        "tensorboard": False,
        "optimizer": OptimizerConfig(name="adam", learning_rate=3e-3),
    }
    return RunConfig(
        data=DataConfig(
            train_size=96, test_size=32, label_noise=0.25, flip=True, crop=1, mixup=0.4
        ),
        model=ModelConfig(name="mlp", width=8, depth=1, norm="batch", dropout=0.1),
        train=TrainConfig(**(options | train_options)),
    )


def tracker(every: int, action=lambda step: None) -> Measurement:
    """A moving average of the last layer's bias, carried along; calls `action(step)`."""

    def measure(snapshot, carry):
        action(int(snapshot.step))
        carry = 0.5 * carry + snapshot.params["head"]["bias"]
        return {"average": carry, "first": carry[0]}, carry

    return Measurement(
        "tracker", measure, every=every, init=lambda snapshot: snapshot.params["head"]["bias"]
    )


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """A tiny training run."""

    run: RunConfig = field(default_factory=small)
    """The run."""

    kill_at: int | None = field(default=None, metadata={"identity": False})
    """Kill this very process, with no chance to clean up, when it measures at this step."""

    pause: float = field(default=0.0, metadata={"identity": False})
    """Seconds to wait at each measurement, for others to kill this process meanwhile."""


def main(config: Config) -> None:
    def die(step):
        time.sleep(config.pause)
        if step == config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config.out, config.run, measurements=[tracker(2, die)], quiet=config.quiet)


EXPERIMENT = Experiment(main=main, presets={"smoke": Config(), "cpu": Config(seeds=2)})
