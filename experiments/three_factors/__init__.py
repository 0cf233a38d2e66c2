"""The ratio of learning rate to batch size decides how flat SGD's minimum is, and how good.

Jastrzebski et al. 2017, "Three Factors Influencing Minima in SGD". A tanh network learns the digits
with squared error by SGD, with all pairs of three learning rates eta and four batch sizes S, until
the training loss is 0.01, so that curvature is compared at equal loss. Both largest eigenvalue and
trace of the Hessian at the end fall with eta / S, validation accuracy rises; pairs of equal eta / S
need equally many epochs and end equally curved.

The paper's memorisation experiment beside it: a quarter of the labels wrong, with the extreme
learning rates and three batch sizes. There a larger eta / S memorises less at the same validation
accuracy, or generalises better where as much is memorised.

    python -m experiments three_factors        # three seeds, 1 minute

Found: rank correlations of eta / S with the largest eigenvalue and with the trace -0.98, with the
validation accuracy 0.79; the trace varies by 34 % over all pairs and by 1 % within pairs of equal
eta / S, whose epochs differ by 3 % at most.

With wrong labels, pairs of equal eta / S memorise in epochs that differ by 5 %. That memorisation
falls with eta / S is not reproduced: where half of the wrong labels are fitted, the validation
accuracy is 84.1 to 84.3 per cent for all ratios up to 0.005, with no order beyond the noise, and
79.4 at 0.02, where batches of four are so noisy that it jumps by 3 per cent between epochs. Much
the same came with cross-entropy, with three layers, with half of the labels wrong, and with
learning rates up to 0.4, on seeds 0-2. What is seen is that noise delays: at an equal product of
eta / S and epochs the largest ratio has memorised less than the others. At the end, with 95 per
cent of the wrong labels fitted where the others of its rate have all, it keeps an accuracy of 76
per cent where they have 69 and 70.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.lib.runs.metrics import MetricsLog
from experiments.lib.runs.shares import shared
from experiments.lib.verdicts.claims import judge_all
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options
from experiments.three_factors import memorisation, pairs


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 320
    """Training examples."""

    width: int = 64
    """Units of each of the two hidden layers."""

    rates: tuple[float, ...] = (0.02, 0.04, 0.08)
    """Learning rates ..."""

    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """... and batch sizes, all pairs of them."""

    stop_loss: float = 0.01
    """Train until the loss of the training set is this ..."""

    max_time: float = 600.0
    """... or learning rate times steps is this."""

    probes: int = 40
    """Random vectors of the trace of the Hessian."""

    wrong_labels: float = 0.25
    """Share of wrong labels where memorisation is looked at, with the extreme learning rates ..."""

    memorising_batch_sizes: tuple[int, ...] = (4, 16, 64)
    """... and these batch sizes, for ..."""

    memorising_time: float = 80.0
    """... so much of the smallest learning rate times steps."""


PRESETS = {
    "smoke": Config(
        seeds=1,
        train_size=32,
        width=8,
        rates=(0.05, 0.1),
        batch_sizes=(8,),
        stop_loss=0.2,
        max_time=30.0,
        probes=4,
        memorising_batch_sizes=(8,),
    ),
    "cpu": Config(),
    "gpu": Config(
        data="cifar10",
        train_size=10000,
        width=512,
        rates=(0.005, 0.01, 0.02),
        batch_sizes=(16, 32, 64, 128),
        stop_loss=0.1,
    ),
    "paper": Config(
        data="fashion_mnist",
        train_size=55000,
        width=512,
        rates=(0.005, 0.01, 0.02),
        batch_sizes=(16, 32, 64, 128),
        stop_loss=0.02,
    ),
}


CLAIMS = pairs.CLAIMS | memorisation.CLAIMS


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        work = pairs.pieces(config, out)
        done: dict[Any, Any] = shared(config, {**work, **memorisation.pieces(config, out)})
        found = {pair: done[pair] for pair in work}
        sizes = config.memorising_batch_sizes
        curves = {pair: curve for size in sizes for pair, curve in done[size].items()}
        with MetricsLog(out) as log:
            for step, ((rate, size), row) in enumerate(found.items()):
                log.write(step, "pair", {"rate": rate, "batch_size": size, **row})
        numbers = pairs.measure(config, found) | memorisation.measure(config, curves)
        pairs.draw(out / "ratio.png", config, found)
        memorisation.draw(out / "wrong_labels.png", curves)
        write_summary(
            out,
            config,
            judge_all(CLAIMS, numbers, config.seed_range()),
            [
                Figure("ratio.png", "At the end of training against eta / S; means over seeds."),
                Figure(
                    "wrong_labels.png",
                    "With wrong labels: along training, mean over seeds and two standard errors, "
                    "and every seed's accuracy against what is memorised.",
                ),
            ],
            {
                "pairs": {f"{rate:g}/{size}": row for (rate, size), row in found.items()},
                "wrong_labels_half_fitted": memorisation.halfway(curves),
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
