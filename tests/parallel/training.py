"""A small training run for one process or several to share, and a disk that fills up."""

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import optax

from experiments.lib.lab import Lab, Options
from experiments.lib.runs.checkpoint import Checkpoints
from experiments.lib.training import minibatch
from experiments.lib.training.recipes import Recipe

RECIPE = Recipe(hidden=(16,), batch_size=16, epochs=12)
RECORDS = 13


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    seeds: int = 1
    pause: float = field(default=0.0, metadata={"identity": False})
    """Seconds to wait before every checkpoint, for others to disturb this process meanwhile."""

    full_at: int | None = field(default=None, metadata={"identity": False})
    """The checkpoint from which on the disk is full."""


lab = Lab(Config, "Nobody", shares=False, data_parallel=True, smoke={})
EXPERIMENT = lab.experiment


def disturbed(config: Config):
    """`Checkpoints.save`, which waits, and fills the disk."""
    save = Checkpoints.save

    def slow(self, step, *args, **options):
        time.sleep(config.pause)
        if step == config.full_at:
            # From now on no file can grow beyond this: what a full disk does, without being root.
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        save(self, step, *args, **options)

    return slow


@lab.run
def run(config: Config, out: Path):
    """The records of one run, smooth and stable, so that rounding stays rounding."""
    Checkpoints.save = disturbed(config)
    seeds = config.seed_range()
    data = minibatch.load_seeds(config.data, seeds, train_size=96, test_size=32)
    trained = minibatch.train_arm(
        out / "sgd", RECIPE, data, seeds, lambda seed, _: optax.sgd(0.05, momentum=0.5), chunk=1
    )
    return {"sgd": trained.records}
