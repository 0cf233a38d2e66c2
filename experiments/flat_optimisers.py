"""SAM and gradient penalties against SGD on wrong labels, at equal steps and at equal cost.

An MLP learns the offline handwritten digits, 20 % of whose training labels are wrong, with SGD,
SAM (Foret et al. 2021), the Fisher penalty and the gradient penalty (FP and GP in Jastrzebski et
al. 2021, "Catastrophic Fisher Explosion"), and implicit gradient regularisation made explicit (IGR,
Barrett & Dherin 2021) with h the learning rate. All share initialisations, data, batches and the
learning rate of a seed; the numbers are means over seeds with standard errors.

    python -m experiments flat_optimisers                 # five seeds, 5 minutes on two cores

Two ways to compare: after the same number of steps, and after the same number of gradient
evaluations (a step of SAM costs 2, of GP and IGR 3, of FP refreshed every 10 steps 4/3). The test
set is clean; "memorised" is the fraction of the wrong labels that the network reproduces. The
radius and the coefficients are those with the best test accuracy at the last step on one seed that
is not reported, of rho 0.1, 0.2, 0.5, 1, 2, FP 0.03, 0.1, 0.3, 1, GP 0.1, 0.3, 1, 3; IGR has
nothing to choose.

Found with five seeds after 1,500 steps (test accuracy, and the best on its way, as if stopped by
the test set; wrong labels memorised; tr F; largest Hessian eigenvalue):

    SGD  0.871 ± 0.006  0.960   0.91   145   6.7
    SAM  0.974 ± 0.003  0.981   0.03    26   0.7
    FP   0.950 ± 0.002  0.974   0.17    47   1.4
    GP   0.972 ± 0.003  0.980   0.15    35   1.0
    IGR  0.879 ± 0.004  0.962   0.88   124   4.9

IGR's coefficient, a quarter of the learning rate, is 40 times smaller than GP's and does little. At
equal cost the others stop earlier than SGD, on wrong labels an advantage of its own (IGR reaches
0.948 so); against the best on SGD's way they gain 1.4 (FP) to 2.1 points (SAM).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.images import DataConfig, load_data
from experiments.lib.nets import losses
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.runs import distributed, rundir
from experiments.lib.runs.identity import identity
from experiments.lib.runs.metrics import jsonable
from experiments.lib.runs.progress import say
from experiments.lib.runs.shares import shared
from experiments.lib.training.config import OptimizerConfig, RunConfig, TrainConfig
from experiments.lib.training.measurements import Measurement
from experiments.lib.training.train import train
from experiments.lib.verdicts.figures import band, figure, style
from experiments.lib.verdicts.report import Picture, Table, Text, print_table, write_report
from experiments.lib.verdicts.summary import run_folder
from experiments.registry import Experiment, Options

COST = {"SGD": 1.0, "SAM": 2.0, "FP": 4 / 3, "GP": 3.0, "IGR": 3.0}
"""Gradient evaluations a step. A refresh of FP is a forward pass, a third of a gradient, and 3."""

QUANTITIES = {
    "test_accuracy": "test accuracy",
    "train_memorized": "wrong labels memorised",
    "trace_fisher": "tr F",
    "sharpness": "largest Hessian eigenvalue",
}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    seeds: int = 5
    """How many seeds to run."""

    first_seed: int = 0
    """The first seed; the others follow it."""

    rho: float = 1.0
    """SAM's radius."""

    fisher_coef: float = 0.3
    """FP's coefficient of the squared norm, refreshed every 10 steps on the whole batch."""

    gradient_coef: float = 1.0
    """GP's coefficient of the squared norm."""

    examples: int = 512
    """Curvature is measured on so many of the training examples."""

    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            data=DataConfig(label_noise=0.2),
            model=ModelConfig(name="mlp", width=128, depth=2),
            train=TrainConfig(
                steps=1500,
                batch_size=64,
                eval_every=125,
                checkpoint_every=500,
                optimizer=OptimizerConfig(learning_rate=0.1),
                tensorboard=False,
            ),
        )
    )
    """Data, network and training, the same for all."""

    def of_seed(self, seed: int) -> RunConfig:
        """The training run of a seed."""
        data = replace(
            self.run.data,
            data_seed=self.run.data.data_seed + seed,
            data_dir=self.data_dir or self.run.data.data_dir,
        )
        return replace(
            self.run, data=data, train=replace(self.run.train, seed=self.run.train.seed + seed)
        )


PRESETS = {
    "smoke": Config(
        seeds=1,
        examples=32,
        run=RunConfig(
            data=DataConfig(label_noise=0.2, train_size=96, test_size=32),
            model=ModelConfig(name="mlp", width=8, depth=1),
            train=TrainConfig(
                steps=12, batch_size=16, eval_every=1, checkpoint_every=12, tensorboard=False
            ),
        ),
    ),
    "cpu": Config(),
}


def make_optimizer(arm: str, config: Config, model: Any) -> optax.GradientTransformation:
    """The chain of one arm: what it does to the gradient, and SGD."""
    train_config = config.run.train
    rate = train_config.optimizer.learning_rate
    loss = losses.OUTPUT_LOSSES[train_config.loss]
    heads = {
        "SGD": lambda: optax.identity(),
        "SAM": lambda: flatjax.sam(config.rho),
        "FP": lambda: flatjax.fisher_penalty(
            model.train_fn, loss, coef=config.fisher_coef, every=10
        ),
        "GP": lambda: flatjax.gradient_penalty(config.gradient_coef),
        "IGR": lambda: flatjax.implicit_gradient_regularization(rate),
    }
    return optax.with_extra_args_support(optax.chain(heads[arm](), optax.sgd(rate)))


def equal_cost_step(arm: str, train_config: TrainConfig) -> int:
    """The step at which an arm has spent as many gradients as SGD at its last."""
    every = train_config.eval_every
    return round((train_config.steps or 0) / COST[arm] / every) * every


class Instrument:
    """Trace of the Fisher information and largest Hessian eigenvalue on one fixed batch."""

    def __init__(self, run: RunConfig, examples: int):
        data = load_data(run.data)
        arrays = data.train.arrays(examples)
        targets = losses.encode(run.train.loss, jnp.asarray(arrays.targets), data.num_classes)
        self.batch = (jnp.asarray(arrays.inputs), targets)
        self.model_fn = make_model(run.model, data.num_classes).model_fn
        self.loss = losses.OUTPUT_LOSSES[run.train.loss]
        # One function object for all states, so that nothing is compiled twice.
        self.losses_fn = functools.partial(_losses, self.model_fn, self.loss)

    def __call__(self, snapshot: Any, carry: Any) -> tuple[dict[str, Any], Any]:
        params, state = snapshot.params, snapshot.model_state
        hessian = flatjax.hessian(self.losses_fn, params, self.batch, state)
        fisher = flatjax.fisher(self.model_fn, self.loss, params, self.batch, state)
        top = flatjax.eigsh(hessian, 1, key=jax.random.key(0), max_products=80)
        trace = flatjax.trace(fisher, key=jax.random.key(1), num_products=50)
        found = {
            "sharpness": top.values[0],
            "sharpness_converged": top.converged[0],
            "trace_fisher": trace.value,
            "trace_fisher_error": trace.standard_error,
        }
        return jsonable(found), carry


def _losses(model_fn, loss, params, batch, model_state):
    inputs, targets = batch
    return loss(model_fn(params, inputs, model_state), targets)


def run_arm(config: Config, out: Path, arm: str, seed: int) -> dict[int, dict[str, float]]:
    """Trains and measures one arm of one seed, or reads the finished run: numbers by step."""
    say(f"{arm}, seed {seed}", enabled=not config.quiet)
    run = config.of_seed(seed)
    instrument: Instrument | None = None

    def measure(snapshot, carry):
        nonlocal instrument
        instrument = instrument or Instrument(run, config.examples)
        return instrument(snapshot, carry)

    steps = (equal_cost_step(arm, run.train),)
    classes = 10 if run.data.name == "digits" else load_data(run.data).num_classes
    result = train(
        out / f"{arm.lower()}-{seed}",
        run,
        optimizer=make_optimizer(arm, config, make_model(run.model, classes)),
        measurements=[Measurement("curvature", measure, steps=steps)],
        extra={
            "arm": arm,
            "coefficients": [config.rho, config.fisher_coef, config.gradient_coef],
        },
        quiet=True,
    )
    rows = {row["step"]: row for row in result.history("eval")}
    for row in result.history("curvature"):
        rows[row["step"]] = {**row, **rows.get(row["step"], {})}
    return rows


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error over seeds."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def summarise(config: Config, runs: dict[str, list[dict[int, dict]]]) -> dict[str, Any]:
    """Mean, standard error and paired difference to SGD of every quantity, both ways."""
    last = config.run.train.steps or 0
    summary: dict[str, Any] = {}
    for way in ("equal_steps", "equal_cost"):
        summary[way] = {}
        for arm, seeds in runs.items():
            step = last if way == "equal_steps" else equal_cost_step(arm, config.run.train)
            numbers: dict[str, Any] = {"step": step}
            for name in QUANTITIES:
                values = [rows[step][name] for rows in seeds]
                against = [rows[last][name] for rows in runs["SGD"]]
                paired = [a - b for a, b in zip(values, against, strict=True)]
                mean, error = mean_and_error(values)
                change, change_error = mean_and_error(paired)
                numbers[name] = {
                    "mean": mean, "error": error, "values": values,
                    "minus_sgd": change, "minus_sgd_error": change_error,
                }  # fmt: skip
            paths = [[r["test_accuracy"] for s, r in rows.items() if s <= step] for rows in seeds]
            best, error = mean_and_error([max(path) for path in paths])
            numbers["best_test_accuracy"] = {"mean": best, "error": error}
            summary[way][arm] = numbers
    return summary


def table(way: str, summary: dict[str, Any]) -> Table:
    """The numbers of one comparison."""
    digits = {"test_accuracy": 3, "train_memorized": 3, "trace_fisher": 2, "sharpness": 1}
    rows = []
    for arm, numbers in summary[way].items():
        cells = [arm, str(numbers["step"])]
        for name, places in digits.items():
            q = numbers[name]
            cells.append(f"{q['mean']:.{places}f} ± {q['error']:.{places}f}")
        gain = numbers["test_accuracy"]
        cells.append(f"{gain['minus_sgd']:+.3f} ± {gain['minus_sgd_error']:.3f}")
        best = numbers["best_test_accuracy"]
        cells.append(f"{best['mean']:.3f} ± {best['error']:.3f}")
        rows.append(cells)
    name = "the same number of steps" if way == "equal_steps" else "the same number of gradients"
    columns = (
        "arm", "steps", "test accuracy", "memorised", "tr F", "top eigenvalue", "minus SGD",
        "best on its way",
    )  # fmt: skip
    caption = (
        f"After {name}; mean ± standard error over seeds. Memorised: wrong labels reproduced; "
        "minus SGD: of the test accuracy, paired by seed; best on its way: as if stopped by the "
        "test set."
    )
    return Table(columns, rows, caption)


def draw_curves(path: Path, runs: dict[str, list[dict[int, dict]]]) -> None:
    """Figure 1: test accuracy and memorised labels over steps and over gradients."""
    budget = max(runs["SGD"][0])
    with figure(path, 2, 2, sharey="row") as panels:
        for number, (arm, seeds) in enumerate(runs.items()):
            steps = sorted(s for s in seeds[0] if "test_accuracy" in seeds[0][s])
            for row, name in enumerate(("test_accuracy", "train_memorized")):
                values = np.array([[rows[s][name] for s in steps] for rows in seeds])
                mean, error = np.array([mean_and_error(list(v)) for v in values.T]).T
                gradients = np.array(steps) * COST[arm]
                for axes, x in ((panels[row][0], steps), (panels[row][1], gradients)):
                    axes.plot(x, mean, **style(number), label=arm)
                    band(axes, x, mean, np.nan_to_num(error), number)
        for row, name in enumerate(("test_accuracy", "train_memorized")):
            panels[row][0].set(xlabel="steps", ylabel=QUANTITIES[name])
            panels[row][1].set(xlabel="gradient evaluations", xlim=(None, 1.02 * budget))
        if budget > 100:
            panels[0][0].set_ylim(0.8, 1.0)
        panels[1][0].legend()


def draw_bars(path: Path, summary: dict[str, Any]) -> None:
    """Figure 2: every quantity at equal steps and at equal cost."""
    with figure(path, 1, 4, panel=(3.0, 3.2)) as panels:
        for axes, (name, label) in zip(panels, QUANTITIES.items(), strict=True):
            for number, way in enumerate(("equal_steps", "equal_cost")):
                arms = list(summary[way])
                quantities = [summary[way][arm][name] for arm in arms]
                chosen = style(number)
                axes.errorbar(
                    np.arange(len(arms)) + 0.2 * (number - 0.5),
                    [q["mean"] for q in quantities],
                    yerr=[2 * np.nan_to_num(q["error"]) for q in quantities],
                    linestyle="none", capsize=3, color=chosen["color"], marker=chosen["marker"],
                    label=way.replace("_", " "),
                )  # fmt: skip
            axes.set_xticks(range(len(arms)), arms)
            axes.set_title(label)
            if name in ("trace_fisher", "sharpness"):
                axes.set_yscale("log")
        panels[0].legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished runs."""
    with run_folder(config) as out:
        seeds = list(config.seed_range())
        work = {
            (arm, seed): functools.partial(run_arm, config, out, arm, seed)
            for seed in seeds
            for arm in COST
        }
        report(config, out, shared(config, work))


def report(config: Config, out: Path, found: dict[tuple[str, int], dict[int, dict]]) -> None:
    """Prints tables; writes summary, figures and report of all runs, by arm and seed."""
    seeds = list(config.seed_range())
    runs = {arm: [found[arm, seed] for seed in seeds] for arm in COST}
    summary = summarise(config, runs)
    tables = [table(way, summary) for way in summary]
    for item in tables:
        print_table(item)
    if not rundir.writable(out):  # a finished run is shown
        return
    rundir.write_json(
        out / "summary.json", jsonable({"config": identity(config), "results": summary})
    )
    draw_curves(out / "curves.png", runs)
    draw_bars(out / "flatness.png", summary)
    write_report(
        out / "report.html",
        "SAM and gradient penalties against SGD on wrong labels",
        [
            Text((__doc__ or "").split("\n\n")[1].replace("\n", " ")),
            *tables,
            Picture(out / "curves.png", "Along training; bands are two standard errors."),
            Picture(out / "flatness.png", "At the end; bars are two standard errors."),
        ],
    )
    if distributed.is_first():
        print(f"{out / 'report.html'}")


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True, data_parallel=True)
