"""The command line: `python -m experiments NAME [--preset smoke|cpu|real|paper] [options]`."""

from __future__ import annotations

from experiments.lib.runs import leaving

if __name__ == "__main__":  # before the other imports, which take their time
    leaving.install()

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Sequence

from experiments import registry
from experiments.lib.runs import distributed, shares
from experiments.lib.runs.errors import BadSeeds, BadShare, ExperimentError, refusals

_USAGE = """\
usage: python -m experiments --list
       python -m experiments NAME --help
       python -m experiments NAME [--preset smoke|cpu|real|paper] [options]
       python -m experiments report [--docs FOLDER]
       python -m experiments data fashion_mnist [--from FOLDER]

NAME is one of the list, or the dotted name of a module of your own.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      The exit status: 0; 1 for an error that says what to do; 2 for wrong usage; 75 if a
      signal stopped the run, which the same command continues: at any time after this call, not
      only in training.
    """
    before = leaving.install()
    try:
        return _main(arguments)
    finally:
        leaving.restore(before)


def _main(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        print(_list() if arguments[:1] == ["--list"] else f"{_USAGE}\n{_list()}")
        return 0
    name, *options = arguments
    if name == "report":
        from experiments.lib.verdicts import gallery

        return _told(lambda: gallery.main(options), "runs")
    if name == "data":
        from experiments.lib.data import command

        return _told(lambda: command.main(options), "data")
    try:
        distributed_options, options = distributed.take_options(options)
    except distributed.CannotJoin as error:
        print(error, file=sys.stderr)
        return 2
    try:
        experiment, documentation = registry.load(name)
    except registry.UnknownExperiment as error:
        close = difflib.get_close_matches(name, registry.summaries(), n=1)
        print(f"{error}{f' (did you mean {close[0]}?)' if close else ''}", file=sys.stderr)
        return 2
    config = registry.with_folder(_parse(name, experiment, documentation, options), name)
    try:
        if config.seeds < 1 or config.first_seed < 0:
            raise BadSeeds(
                "--seeds is at least 1 and --first-seed at least 0, "
                f"got {config.seeds} and {config.first_seed}"
            )
        share = shares.parse(config.share)
        _check_spreading(name, experiment, share is not None, distributed_options is not None)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if distributed_options is None:
        return _run(experiment, config)
    try:
        distributed.join(distributed_options)
    except distributed.CannotJoin as error:
        print(f"CannotJoin: {error}", file=sys.stderr)
        return 1
    return distributed.run(lambda: _run(experiment, config))


def _run(experiment: registry.Experiment, config: registry.Options) -> int:
    if config.data_dir is not None:
        os.environ["FLATJAX_DATA_DIR"] = config.data_dir
    if config.deterministic:  # read when the first array is made
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()

    def run() -> int:
        shares.run(experiment.main, config)
        return 0

    return _told(run, str(config.out))


def _told(run: Callable[[], int], folder: str) -> int:
    """The exit status of `run`; an error that says what to do is a line."""
    try:
        with refusals(folder):
            return run()
    except ExperimentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_status


def _check_spreading(
    name: str, experiment: registry.Experiment, share: bool, distributed: bool
) -> None:
    """Refuses to spread an experiment over processes in a way that it does not know."""
    if share and distributed:
        raise BadShare("--share is for processes that have not joined: leave out --distributed")
    if share and not experiment.shares:
        raise BadShare(
            f"{name} is one piece of work and takes no --share; run its seeds apart, with "
            "--first-seed and --out"
        )
    if distributed and not experiment.data_parallel:
        instead = "; spread it with --share I/N" if experiment.shares else ""
        raise BadShare(f"{name} does not share its batches and takes no --distributed{instead}")


def _parse(
    name: str, experiment: registry.Experiment, documentation: str, options: list[str]
) -> registry.Options:
    """Reads the options over the preset's values; leaves by SystemExit on help and errors."""
    import tyro

    preset = _preset(options) or ("cpu" if "cpu" in experiment.presets else "smoke")
    if preset not in experiment.presets:
        offered = ", ".join(experiment.presets)
        print(f"{name} has no preset {preset!r}; it has {offered}", file=sys.stderr)
        raise SystemExit(2)
    default = dataclasses.replace(experiment.presets[preset], preset=preset)
    return tyro.cli(
        type(default),
        default=default,
        args=options,
        prog=f"python -m experiments {name}",
        description=documentation,
    )


def _preset(options: Sequence[str]) -> str | None:
    """The preset must be known before the rest is read: it decides the defaults."""
    chosen = None
    for position, option in enumerate(options):
        if option == "--preset":
            chosen = options[position + 1] if position + 1 < len(options) else None
        elif option.startswith("--preset="):
            chosen = option.partition("=")[2]
    return chosen


def _list() -> str:
    summaries = registry.summaries()
    width = max(map(len, summaries), default=0)
    lines = (f"  {name:{width}}  {summary}" for name, summary in summaries.items())
    return "experiments:\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
