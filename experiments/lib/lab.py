"""The contract of an experiment: one file says what is run, claimed and drawn; `Lab` does the rest.

    lab = Lab(Config, "Cohen et al. 2021", smoke={"seeds": 1, "steps": 20})
    EXPERIMENT = lab.experiment

    @lab.run
    def run(config, out):                       # the only function that touches the disk
        return {arm: records for ...}           # arrays with a leading axis of seeds

    lab.claim("settles", "Last sharpness times eta / 2.",
              lambda runs, config: runs["GD"]["sharpness"][:, -1] * config.rate / 2,
              low=0.97, high=1.05, source="theory", reason="the edge is at 2 / eta",
              null=lambda runs, config: runs["flow"]["sharpness"][:, -1] * config.rate / 2)
    lab.curves("sharpness", "train_loss")

`Lab` owns the folder and its lock, the presets, the judging, figures, summary and report.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from experiments import registry
from experiments.lib.runs.errors import BadNetwork, ExperimentError
from experiments.lib.runs.progress import say
from experiments.lib.runs.shares import shared
from experiments.lib.verdicts.claims import Claim, Source, Verdict, judge
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import PANEL, figure
from experiments.lib.verdicts.report import Table, print_table
from experiments.lib.verdicts.statistics import by_seed
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment

__all__ = ["Lab", "Options", "Runs", "Table", "shared"]


@dataclass(frozen=True, kw_only=True)
class Options(registry.Options):
    """The options of every experiment, and those of the ones that train networks."""

    data: str = "digits"
    """digits, a prepared TFDS set such as fashion_mnist, or a file or folder of one's own; see
    `experiments.lib.data.small`."""

    network: str | None = None
    """In place of the network of recipe or architecture; see `Architecture.network`."""


C = TypeVar("C", bound=Options)
F = TypeVar("F", bound=Callable[..., Any])
Runs = dict[str, dict[str, np.ndarray]]
"""Arms, and of each its records by name: arrays with a leading axis of seeds."""


class _Drawing(NamedTuple):
    """A figure to be drawn; `options` are those of `figures.figure`."""

    file: str
    caption: str
    draw: Callable[[Any, Any, Any], None]
    options: dict[str, Any]


class Lab(Generic[C]):
    """An experiment.

    Attributes:
      presets: its configurations by preset; `cpu` is the default of its class.
      claims: its claims by name.
      experiment: what the registry needs of it.
    """

    def __init__(
        self,
        config: type[C],
        paper: str,
        /,
        *,
        shares: bool = True,
        data_parallel: bool = False,
        title: str | None = None,
        **presets: Mapping[str, Any],
    ):
        """Begins an experiment without claims and figures.

        Args:
          config: the class of its options.
          paper: where its claims are made, unless a claim says otherwise.
          shares: whether it takes `--share`.
          data_parallel: whether processes can share its batches.
          title: of the report; default the first line of the documentation.
          **presets: by name the changes to the default; those of an inner dataclass as a mapping.
        """
        self.paper, self.title = paper, title
        default = config()
        if unknown := set(presets) - set(typing.get_args(registry.Preset)):
            raise ValueError(f"preset {unknown.pop()!r} is none of smoke, cpu, real and paper")
        self.presets: dict[str, C] = {"cpu": default} | {
            name: changed(default, {"preset": name, **changes}) for name, changes in presets.items()
        }
        self.claims: dict[str, Claim] = {}
        self.experiment = Experiment(self.main, self.presets, shares, data_parallel)
        self._measures: dict[str, Callable[[Any, C], Any]] = {}
        self._nulls: dict[str, Callable[[Any, C], Any]] = {}
        self._drawings: list[_Drawing] = []
        self._tables: list[Callable[[Any, C], Table]] = []
        self._run: Callable[[C, Path], Any] | None = None
        self._extra: Callable[[Any, C], Mapping[str, Any]] | None = None

    def run(self, fn: F) -> F:
        """Registers `run(config, out) -> runs`, which alone touches the disk."""
        self._run = fn
        return fn

    def claim(
        self,
        name: str,
        statement: str,
        measure: Callable[[Any, C], Any],
        *,
        low: float | None = None,
        high: float | None = None,
        source: Source,
        reason: str = "",
        paper: str | None = None,
        null: Callable[[Any, C], Any] | None = None,
    ) -> None:
        """Registers a claim.

        Args:
          name: words joined by hyphens.
          statement: one sentence; it says what is measured.
          measure: `measure(runs, config)`, one number per seed: in their order, or by seed.
          low: the least accepted mean; `None`: no bound.
          high: the largest.
          source: where the range comes from.
          reason: more about that.
          paper: where it is claimed, if not where the others are.
          null: the same number of something for which the claim must fail, such as the untrained
            network; if it passes, the claim is void.

        Raises:
          ValueError: there is a claim of this name or it is none, the source is unknown, or the
            range accepts everything or nothing.
        """
        if name in self.claims or not re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", name):
            raise ValueError(f"claim {name!r}: a name is words joined by hyphens, and used once")
        self.claims[name] = Claim(
            name=name,
            statement=statement,
            paper=paper or self.paper,
            low=low,
            high=high,
            source=source,
            reason=reason,
        )
        self._measures[name] = measure
        if null is not None:
            self._nulls[name] = null

    def figure(
        self,
        caption: str,
        *,
        rows: int = 1,
        columns: int = 1,
        panel: tuple[float, float] = PANEL,
        **subplots: Any,
    ) -> Callable[[F], F]:
        """Registers `draw(axes, runs, config)`; the file has the function's name.

        Args:
          caption: what the figure shows.
          rows: of panels.
          columns: of panels.
          panel: width and height of one in inches.
          **subplots: more for `matplotlib.figure.Figure.subplots`.
        """

        def register(draw: F) -> F:
            options = {"rows": rows, "columns": columns, "panel": panel, **subplots}
            self._drawings.append(_Drawing(f"{draw.__name__}.png", caption, draw, options))
            return draw

        return register

    def curves(self, *names: str, x: str = "epoch", log: Sequence[str] = ()) -> None:
        """Registers the figure that every experiment has: some records along training.

        Args:
          *names: the records, a panel each.
          x: the record along the horizontal axis.
          log: which of them, `x` too, have a logarithmic axis.
        """

        def training(axes: Any, runs: Runs, config: C) -> None:
            del config
            for panel, name in zip(np.atleast_1d(axes), names, strict=True):
                scales = {f"{a}scale": "log" for a, n in (("x", x), ("y", name)) if n in log}
                panel.set(xlabel=words(x), ylabel=words(name), **scales)
                for number, (arm, records) in enumerate(runs.items()):
                    if missing := {name, x} - set(records):
                        raise KeyError(
                            f"no record {missing.pop()!r}; there are {', '.join(records)}"
                        )
                    curve(panel, records[x][0], records[name], number, arm)
            np.atleast_1d(axes)[0].legend(ncols=2, fontsize=8)

        caption = "Along training; mean over seeds, two standard errors."
        self.figure(caption, columns=len(names))(training)

    def table(self, make: Callable[[Any, C], Table]) -> Callable[[Any, C], Table]:
        """Registers `make(runs, config)`, a table to print and to report."""
        self._tables.append(make)
        return make

    def extra(self, make: F) -> F:
        """Registers `make(runs, config)`, more numbers for the summary."""
        self._extra = make
        return make

    def judged(self, runs: Any, config: C) -> list[Verdict]:
        """The verdicts on all claims, in their order."""
        found = []
        for name, claim in self.claims.items():
            null = self._nulls.get(name)
            values = _of_seeds(name, self._measures[name], runs, config)
            other = None if null is None else _of_seeds(name, null, runs, config)
            found.append(judge(claim, values, other))
        if config.preset == "smoke":  # too short to be judged
            found = [verdict._replace(verdict="not judged") for verdict in found]
        return found

    def main(self, config: C) -> None:
        """Runs the experiment, or shows the finished run."""
        if self._run is None:
            raise TypeError("the experiment has no @lab.run: say what it runs")
        config = with_network(config)
        with run_folder(config) as out:
            runs = self._run(config, out)
            drawn = [drawing for drawing in self._drawings if _drawn(drawing, out, runs, config)]
            made = [_made(make.__name__, make, runs, config) for make in self._tables]
            tables = [table for table in made if table is not None]
            for table in tables:
                print_table(table)
            write_summary(
                out,
                config,
                self.judged(runs, config),
                [Figure(drawing.file, drawing.caption) for drawing in drawn],
                _made("what else was measured", self._extra, runs, config) if self._extra else None,
                tables=tables,
                title=self.title,
            )


def _made(what: str, make: Callable[[Any, Any], Any], runs: Any, config: Any) -> Any:
    """What is made of the runs; of some that diverged `None` where it cannot be made.

    So they are still judged and reported.
    """
    try:
        # A ratio to nothing is not finite, which is said by its having no verdict.
        with np.errstate(divide="ignore", invalid="ignore"):
            return make(runs, config)
    except (ArithmeticError, LookupError, TypeError, ValueError, Warning) as error:
        if isinstance(error, ExperimentError) or _finite(runs):
            raise
        say(f"{what} is left out, not all numbers of the runs are finite: {error}")
        return None


def _drawn(drawing: _Drawing, out: Path, runs: Any, config: Any) -> bool:
    """Draws a figure, if it can be made of the runs."""

    def draw(runs: Any, config: Any) -> bool:
        with figure(out / drawing.file, **drawing.options) as axes:
            drawing.draw(axes, runs, config)
        return True

    if _made(drawing.file, draw, runs, config):
        return True
    (out / drawing.file).unlink(missing_ok=True)  # of an earlier start
    return False


def _finite(runs: Any) -> bool:
    """Whether all numbers of the runs are finite."""
    if isinstance(runs, Mapping):
        return all(map(_finite, runs.values()))
    if isinstance(runs, tuple | list):
        return all(map(_finite, runs))
    numbers = np.asarray(runs)
    return not np.issubdtype(numbers.dtype, np.inexact) or bool(np.isfinite(numbers).all())


def _of_seeds(
    name: str, measure: Callable[[Any, Any], Any], runs: Any, config: Options
) -> Mapping[int, Any]:
    """The numbers of a claim by seed."""
    values = _made(f"claim {name!r}", measure, runs, config)
    if values is None:
        values = np.full(config.seeds, np.nan)
    if isinstance(values, Mapping):
        return values
    if np.shape(values) != (config.seeds,):
        raise ValueError(
            f"claim {name!r} measures an array of shape {np.shape(values)}: give one number per "
            f"seed, ({config.seeds},)"
        )
    return by_seed(config.seed_range(), values)


def with_network(config: Any) -> Any:
    """The options with the network of `--network` in their recipe or architecture."""
    network = getattr(config, "network", None)
    if network is None:
        return config
    for field in ("recipe", "architecture"):
        if hasattr(config, field):
            return changed(config, {"network": None, field: {"network": network}})
    raise BadNetwork("the experiment is about a network of its own: leave out --network")


def changed(config: C, changes: Mapping[str, Any]) -> C:
    """A dataclass with some fields changed; those of an inner one by a mapping."""
    found = {
        name: changed(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **found)
