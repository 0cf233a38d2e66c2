"""Independent pieces of work, spread over processes that know nothing of each other.

    python -m experiments NAME --share 1/3           # and 2/3 and 3/3: beside it, later, elsewhere

    with run_folder(config) as out:
        found = shared(config, {arm: functools.partial(run_arm, config, out, arm) for arm in ARMS})

Share 1/3 does the first piece and every third one after it. Each process writes the files that a
run of one process would write, and marks the pieces that are done; files are all that they share.
The one that finds every piece done runs the experiment once more, as one process: it finds the
work finished and judges it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from experiments.lib.runs import rundir
from experiments.lib.runs.errors import BadShare, RunLocked
from experiments.lib.runs.paths import as_path
from experiments.lib.runs.progress import say
from experiments.registry import Options

K = TypeVar("K")
T = TypeVar("T")


class Share(NamedTuple):
    """Which share of the work a process does.

    Attributes:
      index: from 1.
      count: of how many.
    """

    index: int
    count: int


class ShareDone(BaseException):
    """A share is done, which ends the experiment's `main` early.

    Not an `Exception`: nothing has gone wrong, and nothing on the way should catch it.

    Attributes:
      missing: how many pieces are not done, by whichever share.
      pieces: how many there are.
    """

    def __init__(self, missing: int, pieces: int):
        super().__init__(f"{missing} of {pieces} pieces are missing")
        self.missing, self.pieces = missing, pieces


def parse(text: str | None) -> Share | None:
    """The share of an option's text; None for None.

    Raises:
      BadShare: it is not I/N with I from 1 to N.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise BadShare(f"--share takes I/N with I from 1 to N, such as 1/3; got {text!r}")
    return Share(int(found[1]), int(found[2]))


def folder(out: Path, share: Share | None = None) -> Path:
    """Where the shares of a run keep their marks; or where one of them keeps its lock."""
    return out / ".shares" / (f"{share.index}-of-{share.count}" if share else "")


def shared(config: Options, work: Mapping[K, Callable[[], T]]) -> dict[K, T]:
    """The results of all pieces of work, in order; to be called once in an experiment.

    Args:
      config: the experiment's configuration, with its folder.
      work: the pieces by name, in an order that the configuration decides; none needs another.
        Each keeps what it has done in files of its own, and called again reads its result.

    Returns:
      The results by name.

    Raises:
      ShareDone: with `--share`, when this process has done its pieces.
      RunLocked: another process is at work on one of them.
    """
    share = parse(config.share)
    if share is None:
        return {name: piece() for name, piece in work.items()}
    assert config.out is not None
    out = as_path(config.out)
    places = [folder(out) / f"piece_{number}" for number in range(len(work))]
    chosen = slice(share.index - 1, None, share.count)
    for place, piece in zip(places[chosen], list(work.values())[chosen], strict=True):
        with rundir.locked(place):  # shares of another N, perhaps
            started = time.monotonic()
            piece()
            if not (place / "done.json").exists():
                rundir.write_json(place / "done.json", {"seconds": time.monotonic() - started})
    missing = sum(not (place / "done.json").exists() for place in places)
    raise ShareDone(missing, len(places))


def seconds(out: Path) -> float:
    """How long the pieces took that were done in shares, all together."""
    marks = folder(out).glob("piece_*/done.json")
    then = "the piece is looked at again by its share"
    found = (rundir.read_json(path, seconds=(int, float), then=then) for path in sorted(marks))
    return sum(mark["seconds"] for mark in found if mark)


def run(main: Callable[[Any], Any], config: Options) -> None:
    """Runs an experiment, or its share and then, if that was the last one, the judgement."""
    try:
        main(config)
        return
    except ShareDone as done:
        missing, pieces = done.missing, done.pieces
    left = f"{missing} of {pieces} pieces are not" if missing else "so are all others"
    say(f"share {config.share} is done; {left}", enabled=not config.quiet)
    if not missing:
        # Another share may still be at its end, or judge already.
        with contextlib.suppress(RunLocked):
            main(dataclasses.replace(config, share=None))
