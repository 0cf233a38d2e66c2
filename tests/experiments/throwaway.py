"""A tiny experiment to try the command line on.

It does nothing at all.
"""

from dataclasses import dataclass, field

from experiments.registry import Experiment, Options


@dataclass(frozen=True)
class Run:
    """Some options."""

    steps: int = 16
    """Stop after this many updates."""

    batch_size: int = 8
    """Examples per update."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """An experiment's options."""

    run: Run = field(default_factory=Run)
    """The run."""


def main(config: Config) -> None:
    del config


EXPERIMENT = Experiment(main=main, presets={"smoke": Config(), "cpu": Config(seeds=2)})
