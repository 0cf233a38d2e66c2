"""Random labels: a network memorises them all, a little slower, and ends where it is sharper.

Zhang et al. (ICLR 2017, "Understanding deep learning requires rethinking generalization"): networks
fit random labels without error, with the same hyperparameters and little more time, while the test
accuracy falls to chance. Here a fraction q of the labels of 500 digits is drawn anew, uniformly,
and an MLP trained by Adam with full batches until the cross-entropy is 0.05: at matched loss, for
the Hessian of cross-entropy vanishes with the loss. What memorising costs shows there, in the
largest Hessian eigenvalue, the trace and the norm of the weights.

    python -m experiments random_labels                            # three seeds, 23 seconds

Found on seeds 0-4, for q = 0, 1/4, 1/2, 3/4, 1 (means):

    test accuracy        0.954   0.824   0.604   0.360   0.089
    steps                52      204     237     244     246
    largest eigenvalue   1.36    2.01    2.26    2.15    1.95
    trace                16      32      41      49      50
    norm                 24.2    29.4    32.6    34.5    35.2

All labels are fitted. The trace rises with q throughout; the largest eigenvalue, which also knows
how many outlying directions the true classes make, does not.

gpu and paper: a fully connected network on CIFAR-10, when prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optax

from experiments.lib.data.small import SmallData, stack_seeds
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature, minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.verdicts.claims import Claim, by_name, judge_all
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import figure, style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options

Found = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 500
    """Training examples."""

    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Fractions of the labels that are drawn anew; from none to all."""

    learning_rate: float = 2e-3
    """Adam's."""

    recipe: Recipe = Recipe(
        hidden=(256,), activation="relu", init_scale=float(np.sqrt(2.0)), batch_size=None,
        epochs=600, record_every=5, stop_loss=0.05,
    )  # fmt: skip
    """Network and training; an epoch is one step on the full batch."""


PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=30, fractions=(0.0, 1.0),
        recipe=Recipe(
            hidden=(16,), activation="relu", batch_size=None, epochs=12, record_every=4,
            stop_loss=0.05,
        ),
    ),
    "cpu": Config(),
    "gpu": Config(
        data="cifar10", train_size=5000,
        recipe=Recipe(
            hidden=(1024,), activation="relu", init_scale=float(np.sqrt(2.0)), batch_size=None,
            epochs=5000, record_every=20, stop_loss=0.05,
        ),
    ),
    "paper": Config(
        data="cifar10", train_size=50_000, learning_rate=1e-3,
        recipe=Recipe(
            hidden=(512, 512, 512), activation="relu", init_scale=float(np.sqrt(2.0)),
            batch_size=128, epochs=500, record_every=5, stop_loss=0.05,
        ),
    ),
}  # fmt: skip

_PAPER = "Zhang et al. 2017"

CLAIMS = by_name(
    Claim(
        name="fits-everything",
        statement="The least training accuracy over all fractions of random labels.",
        paper=_PAPER,
        low=0.99,
        reason="0.996 to 1 on seeds 0-4",
    ),
    Claim(
        name="chance",
        statement="Test accuracy with random labels only; chance is 0.1.",
        paper=_PAPER,
        low=0.05,
        high=0.15,
        reason="0.0786 to 0.103 on seeds 0-4",
    ),
    Claim(
        name="test-falls",
        statement="Rank correlation of the fraction of random labels and test accuracy.",
        paper=_PAPER,
        high=-0.95,
        reason="-1 to -1 on seeds 0-4",
    ),
    Claim(
        name="slower-by-a-factor",
        statement="Steps to the same training loss, random labels only over true labels only.",
        paper=_PAPER,
        low=1.5,
        high=8.0,
        reason="4.39 to 5.09 on seeds 0-4",
    ),
    Claim(
        name="sharper",
        statement="Largest Hessian eigenvalue at the same loss, random labels over true ones.",
        paper="Arpit et al. 2017; Keskar et al. 2017",
        low=1.0,
        reason="1.32 to 1.59 on seeds 0-4",
    ),
    Claim(
        name="larger-trace",
        statement="Trace of the Hessian at the same loss, random labels over true ones.",
        paper="Arpit et al. 2017; Keskar et al. 2017",
        low=1.0,
        reason="2.92 to 3.29 on seeds 0-4",
    ),
    Claim(
        name="trace-rises",
        statement="Rank correlation of the fraction of random labels and the trace.",
        paper="Arpit et al. 2017; Keskar et al. 2017",
        low=0.6,
        reason="1 to 1 on seeds 0-4",
    ),
    Claim(
        name="larger-norm",
        statement="Norm of the weights at the end, random labels over true ones.",
        paper="Neyshabur et al. 2017",
        low=1.0,
        reason="1.44 to 1.47 on seeds 0-4",
    ),
)


def with_random_labels(data: SmallData, fraction: float, seed: int) -> SmallData:
    """Draws exactly this fraction of the training labels anew, uniformly over the classes."""
    rng = np.random.RandomState([seed, 7])
    chosen = rng.permutation(len(data.targets))[: round(fraction * len(data.targets))]
    targets = data.clean_targets.copy()
    targets[chosen] = rng.randint(0, 10, size=len(chosen))
    return data._replace(targets=targets)


def run(config: Config, out: Path) -> Found:
    """Arrays (seeds, fractions): ends and curvature; `records_*` also over the records."""
    seeds, count = list(config.seed_range()), len(config.fractions)
    data = stack_seeds(
        [
            with_random_labels(
                minibatch.small_data(config.data, seed=s, train_size=config.train_size), q, s
            )
            for s in seeds
            for q in config.fractions
        ]
    )
    trained = minibatch.train_arm(
        out / "adam",
        config.recipe,
        data,
        np.repeat(seeds, count),
        lambda seed, hyper: optax.adam(config.learning_rate),
        chunk=10,
        quiet=config.quiet,
    )
    found = kept_arrays(
        out / "curvature.npz",
        lambda: curvature.curvature_of_runs(config.recipe, trained.params, data),
    )
    names = ("train_accuracy", "test_accuracy", "train_loss", "norm", "epoch")
    found |= {name: trained.records[name][:, -1] for name in names}
    found["reached"] = trained.reached
    found |= {f"records_{n}": trained.records[n] for n in ("epoch", "train_accuracy")}
    return {k: v.reshape(len(seeds), count, *v.shape[1:]) for k, v in found.items()}


def numbers(config: Config, found: Found) -> dict[str, np.ndarray]:
    """The measured number of every claim, one a seed; missing where the loss was not reached."""

    def ratio(name):
        return np.where(found["reached"].all(1), found[name][:, -1] / found[name][:, 0], np.nan)

    def order(name):
        return np.array([rank_correlation(config.fractions, row) for row in found[name]])

    return {
        "fits-everything": found["train_accuracy"].min(1),
        "chance": found["test_accuracy"][:, -1],
        "test-falls": order("test_accuracy"),
        "slower-by-a-factor": ratio("epoch"),
        "sharper": ratio("sharpness"),
        "larger-trace": ratio("trace"),
        "trace-rises": order("trace"),
        "larger-norm": ratio("norm"),
    }


def draw(path: Path, config: Config, found: Found) -> None:
    """Fit along training; accuracy, steps and curvature against the fraction of random labels."""
    q = config.fractions
    with figure(path, 1, 4, panel=(3.2, 3.0), dpi=95) as axes:
        for number, fraction in enumerate(q):
            for k, row in enumerate(found["records_train_accuracy"][:, number]):
                label = f"{fraction:g} random" if k == 0 else None
                options = {**style(number, markers=False), "linewidth": 1.0}
                axes[0].plot(found["records_epoch"][k, number], row, label=label, **options)
            axes[0].set(xscale="symlog", xlabel="step", title="training accuracy")
        axes[0].legend(fontsize=8)
        curve(axes[1], q, found["test_accuracy"], 0, "test accuracy", marker="o")
        curve(axes[1], q, found["train_accuracy"], 1, "training accuracy", marker="s")
        axes[1].set(xlabel="fraction of random labels", title="accuracy")
        axes[1].legend()
        curve(axes[2], q, found["epoch"], 2, marker="o")
        axes[2].set(xlabel="fraction of random labels", title="steps to the loss")
        for number, (name, label) in enumerate(
            (("sharpness", "largest eigenvalue"), ("trace", "trace"), ("norm", "norm of weights"))
        ):
            relative = found[name] / found[name][:, :1]
            curve(axes[3], q, relative, number, label, marker="o")
        axes[3].set(xlabel="fraction of random labels", title="over that of true labels")
        axes[3].legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        found = run(config, out)
        draw(out / "fractions.png", config, found)
        caption = "Fit along training, every seed; the rest means over seeds, two standard errors."
        write_summary(
            out,
            config,
            judge_all(CLAIMS, numbers(config, found), config.seed_range()),
            [Figure("fractions.png", caption)],
            {k: v for k, v in found.items() if not k.startswith("records_")},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
