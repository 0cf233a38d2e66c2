"""Train with SGD and with SAM on partly wrong labels, and measure how flat both end.

A small CNN learns the offline handwritten digits, 20 % of whose labels are wrong, once with SGD
and once with SAM (Foret et al., ICLR 2021, arXiv:2010.01412). Both stop at the same training loss:
driven to zero, cross-entropy makes every curvature vanish. Along the way and at the end the
Hessian, the gradient covariance K and the Fisher information F are measured.

    python -m experiments quickstart                      # some 130 seconds of CPU time
    python -m experiments quickstart --label-noise 0      # all labels right
    python -m experiments quickstart --network my_nets:tiny --data my.npz --out runs/mine
    python -m experiments quickstart --checkpoint PATH --network my_nets:tiny --data my.npz

The folder of the run (default runs/quickstart/cpu) then holds report.html, summary.json and the
figures; that of a measured checkpoint lies in it. Found with `--seeds 5`, means and standard
errors: a largest Hessian eigenvalue of 9.7 +- 0.2 after SAM and 28.4 +- 1.3 after SGD, and test
accuracies of 94.8 +- 0.6 % and 92.6 +- 0.5 %.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optax

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.training import minibatch
from experiments.lib.training.curvature import CurvatureConfig
from experiments.lib.training.recipes import Recipe
from experiments.quickstart import checkpoints, pictures, states, table


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    seeds: int = 1  # how many seeds to run
    train_size: int = 1500  # training examples
    label_noise: float | None = None  # fraction of wrong labels; default 0.2, of --checkpoint 0
    rate: float = 0.05  # the learning rate of both
    rho: float = 0.1  # SAM's radius
    recipe: Recipe = Recipe(network="cnn-16", batch_size=64, epochs=130)
    """Network and training. Both stop at the training loss `stop_loss`: by default twice the
    fraction of wrong labels, where about half of them are learned by heart, and 0.05 without."""

    measure_every: int = 8  # measure the curvature every so many epochs ...
    measure_at: tuple[int, ...] = (1, 2, 4)  # ... after these, and at the end
    curvature: CurvatureConfig = CurvatureConfig()  # the measurements
    checkpoint: str | None = None
    """Measure this checkpoint instead of training: the folder of a run, an orbax checkpoint or a
    flax msgpack file. --network and --data say what it belongs to."""

    step: int | Literal["best"] | None = None
    """Which of several checkpoints in the folder: a step, or best; default the last."""

    which: int = 0  # which run of a checkpoint that holds several

    @property
    def noise(self) -> float:
        """The fraction of wrong labels."""
        default = 0.2 if self.checkpoint is None else 0.0
        return default if self.label_noise is None else self.label_noise

    @property
    def stop_loss(self) -> float:
        """The training loss to stop at."""
        stop = self.recipe.stop_loss
        return max(2 * self.noise, 0.05) if stop is None else stop

    def load(self) -> SmallData:
        """The data, with a leading axis of seeds."""
        return minibatch.load_seeds(
            self.data,
            self.seed_range(),
            train_size=self.train_size,
            label_noise=self.noise,
            num_classes=self.recipe.classes,
            flat=self.recipe.flat,
        )


lab = Lab(
    Config,
    "Foret et al. 2021",
    data_parallel=True,
    smoke={
        "train_size": 96,
        "measure_every": 4,
        "recipe": {"network": "mlp-8", "batch_size": 32, "epochs": 2},
        "curvature": {
            "examples": 32,
            "max_steps": 24,
            "max_probes": 4,
            "density_probes": 2,
            "density_steps": 8,
            "line_points": 5,
        },
    },
)
single = Lab(Config, "Foret et al. 2021", title="The curvature of a checkpoint")


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of both arms, and the curvature along the way and at the end."""
    data = config.load()
    recipe = dataclasses.replace(config.recipe, stop_loss=config.stop_loss)

    def train(arm: str) -> states.Records:
        head = {"SGD": optax.identity, "SAM": lambda: flatjax.sam(config.rho)}[arm]
        trained = minibatch.train_arm(
            out / arm.lower(),
            recipe,
            data,
            config.seed_range(),
            lambda seed, hyper: optax.chain(head(), optax.sgd(config.rate)),
            measure=states.recorded,
            quiet=config.quiet,
        )
        return states.measured(config, out / arm.lower(), trained, data)

    return shared(config, {arm: functools.partial(train, arm) for arm in ("SGD", "SAM")})


lab.table(table.table)
lab.extra(table.ends)
lab.figure(
    "Left: the largest Hessian eigenvalue along training; gradient descent of this learning rate η "
    "is unstable in directions of curvature above 2/η. Middle: the Hessian's spectral density at "
    "the end, the share of the eigenvalues per unit length, with a 95 % band. Right: the loss "
    "along the top eigenvector, of length one.",
    columns=3,
)(pictures.overview)
lab.figure(
    "Loss over the training set, wrong labels included, down to the loss at which both stop; test "
    "accuracy; and the fraction of the wrong labels that the network predicts, learned by heart.",
    columns=3,
)(pictures.training)
lab.figure(
    "The largest and the smallest eigenvalues of the Hessian H, on axes that are linear near zero; "
    "traces of H, of the Fisher information F and of the gradient covariance K, and the largest "
    "eigenvalue of K; shaded two standard errors.",
    rows=2,
    columns=3,
)(pictures.curvature)
lab.figure(
    "The loss along a random direction, filter-normalised (Li et al. 2018), in multiples of the "
    "weights."
)(pictures.random_direction)

single.run(checkpoints.measured)
single.table(table.table)
single.extra(table.ends)
single.figure(
    "The Hessian's spectral density, with a 95 % band; the loss along the top eigenvector, of "
    "length one, and along a random direction, filter-normalised (Li et al. 2018), in multiples of "
    "the weights.",
    columns=3,
)(pictures.state)


def main(config: Config) -> None:
    """Trains and compares, or measures a checkpoint; or shows what is finished."""
    if config.checkpoint is None:
        lab.main(config)
    else:
        fitted = checkpoints.fitted(config)
        single.main(dataclasses.replace(fitted, out=checkpoints.folder(config)))


EXPERIMENT = lab.experiment._replace(main=main)
