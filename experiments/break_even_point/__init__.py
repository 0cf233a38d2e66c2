"""Learning rate and batch size decide early how curved and how noisy a region SGD trains in.

Jastrzebski et al. 2020, "The Break-Even Point on Optimization Trajectories of Deep Neural
Networks". K is the covariance of the per-example gradients, H the Hessian. A tanh network that
starts flat learns the digits, a quarter of the labels wrong, with cross-entropy. lambda_K, lambda_H
and tr K grow until SGD can no longer stand them, the break-even point; with a larger learning rate
or a smaller batch that comes earlier, and the largest values on the way (medians of 9, means of 9,
up to 97 % training accuracy) stay smaller: the variance-reduction conjecture. By the
pre-conditioning conjecture tr K / lambda_K is larger then. The break-even point of the small rate
is here the first measurement at which tr K exceeds the largest tr K of the large rate; from there
its predictions on the test set leave the path of the large rate's.

The paper's K is that of the gradients of batches, not of examples. It is measured too, and alone
where the network has batch normalisation, with which no example has a gradient of its own. The
conjectures are also about such networks, and the paper finds that without a large learning rate
normalisation does not make the loss surface better conditioned.

    python -m experiments break_even_point        # three seeds, 2 minutes

Found: a ten times smaller rate makes the largest lambda_H 3.9 times and tr K 1.6 times as large, a
batch of 200 in place of 8 makes them 3.2 and 1.4 times as large; after the break-even point the
paths are 1.5 times as far apart as before. For single examples lambda_K remains open (1.2 times in
both cases, with standard errors of 0.1 and 0.3: of 200, a quarter of them with wrong labels, single
ones decide it late in training); for batches it is 1.6 and 1.4 times as large. With batch norm the
small rate makes lambda_H 5.4 times, lambda_K 2.7 times and tr K 2.3 times as large; and with the
small rate lambda_K is 2.4 times that without norm: by itself the norm makes nothing flatter.

The pre-conditioning conjecture is not seen. The paper has a largest tr K / lambda_K of 14.3 against
10.7; here it does not differ beyond the noise without norm, and with norm it is smaller with the
large rate, by 13 %: a large rate lowers tr K as much as lambda_K, so that over accuracies of 60 to
97 % the ratio's mean is 8.8 with the large rate and 10.4 with the small one. At equal, large rate
the norm itself raises the ratio, by 8 %.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax.numpy as jnp

from experiments.break_even_point.conjectures import CLAIMS, measure
from experiments.break_even_point.pictures import draw_growth, draw_norm, draw_paths
from experiments.break_even_point.training import arms, run_arm
from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.runs.shares import shared
from experiments.lib.verdicts.claims import judge_all
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 400
    """Training examples."""

    label_noise: float = 0.25
    """Share of wrong labels."""

    width: int = 64
    """Units of each of the three hidden layers."""

    init_scale: float = 0.6
    """Of the initial weights; small, so that training starts flat."""

    rates: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Learning rates, from the largest, all with the middle batch size ..."""

    batch_sizes: tuple[int, ...] = (8, 40, 200)
    """... and three batch sizes, all with the smallest learning rate."""

    norm_rates: tuple[float, ...] = (1.0, 0.1)
    """Learning rates, from the largest, with batch normalisation and the middle batch size."""

    norm_steps: int = 480
    """Steps with batch normalisation: the small rate needs no more of them than the large one."""

    time: float = 400.0
    """Steps times learning rate of every arm without."""

    measurements: int = 120
    """Measurements on the way of every arm."""

    examples: int = 200
    """K is that of so many training examples."""

    gradient_batches: int = 30
    """The covariance K_B is that of the gradients of at least so many batches of the middle
    size."""

    chunk: int = 60
    """Measurements between two saves."""


PRESETS = {
    "smoke": Config(
        seeds=1,
        train_size=40,
        width=8,
        rates=(1.0, 0.5),
        batch_sizes=(8, 8, 8),
        norm_rates=(1.0, 0.5),
        norm_steps=20,
        gradient_batches=5,
        time=10.0,
        measurements=10,
        examples=16,
        chunk=5,
    ),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=20000, width=256, rates=(0.1, 0.03, 0.01), time=2000),
    "paper": Config(
        data="cifar10", train_size=45000, width=512, rates=(0.1, 0.01, 0.001), time=4000
    ),
}


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        options = {"train_size": config.train_size, "label_noise": config.label_noise}
        data = stack_seeds(
            [small_data(config.data, seed=seed, **options) for seed in config.seed_range()]
        )
        data = SmallData(*map(jnp.asarray, data))
        work = {name: functools.partial(run_arm, config, out, name, data) for name in arms(config)}
        records = shared(config, work)
        numbers = measure(config, records)
        draw_growth(out / "growth.png", config, records)
        draw_paths(out / "paths.png", config, records)
        draw_norm(out / "batch_norm.png", config, records)
        last = {name: r["test_accuracy"][:, -1] for name, r in records.items()}
        reached = {name: r["accuracy"][:, -1] for name, r in records.items()}
        write_summary(
            out,
            config,
            judge_all(CLAIMS, numbers, config.seed_range()),
            [
                Figure("growth.png", "Curvature and gradient noise along training, seed means."),
                Figure(
                    "paths.png",
                    "Predictions of the first seed along training; the cross is the break-even "
                    "point of the small rate.",
                ),
                Figure("batch_norm.png", "With and without batch normalisation; seed means."),
            ],
            {"last_test_accuracy": last, "last_training_accuracy": reached},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
