"""What random features find on the images of one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.data.small import SmallData, small_data
from experiments.random_features.least_squares import (
    KINDS,
    LeastSquares,
    draw,
    features,
    limit_kernel,
    risk,
)

if TYPE_CHECKING:
    from experiments.random_features import Config

RIDGES = [0.0, *np.geomspace(1e-8, 1e2, 21)]
"""Of the features of images, none among them; the best one is chosen by the test risk."""


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(n, 10) of (n,)."""
    return np.eye(10)[labels]


def noisy_data(config: Config, seed: int) -> tuple[SmallData, np.ndarray, np.ndarray]:
    """Images, and training and test targets (n, noises, 10): the same examples for all noises."""
    size = max(config.train_size, *config.sample_sizes)
    each = [
        small_data(
            config.data, seed=seed, train_size=size, test_size=config.test_size, label_noise=noise
        )
        for noise in config.noises
    ]
    targets = np.stack([one_hot(data.targets) for data in each], axis=1)
    test = np.stack([one_hot(data.test_targets) for data in each], axis=1)
    return each[0], targets, test


class Images:
    """The images of one seed, and what is found with so many features of so many of them."""

    def __init__(self, config: Config, seed: int):
        """Loads them."""
        self.config, self.seed = config, seed
        self.data, self.targets, self.test_targets = noisy_data(config, seed)

    def draw(self, kind: str, count: int, number: int = 0) -> Any:
        """The weights of the features."""
        rng = np.random.default_rng([self.seed, 3, KINDS.index(kind), number])
        return draw(kind, self.data.inputs.shape[1], count, rng)

    def solved(
        self, kind: str, drawn: Any, count: int, size: int
    ) -> tuple[LeastSquares, np.ndarray, np.ndarray]:
        """The solutions, the training features, and the test outputs for every ridge."""
        train = features(kind, drawn, self.data.inputs[:size], count)
        solved = LeastSquares(train, self.targets[:size])
        test = features(kind, drawn, self.data.test_inputs, count)
        return solved, train, solved.predictions(test, RIDGES)

    def fit(self, kind: str, drawn: Any, count: int, size: int) -> dict[str, np.ndarray]:
        """Test and training risk, test error and norm of the solution of least norm.

        And `ridge`, the least test risk of any ridge; each of shape (noises,).
        """
        solved, train, outputs = self.solved(kind, drawn, count, size)
        risks = risk(outputs, self.test_targets)
        wrong = outputs[0].argmax(-1) != self.test_targets.argmax(-1)
        return {
            "test": risks[0],
            "train": risk(solved.predictions(train, [0.0])[0], self.targets[:size]),
            "error": wrong.mean(0),
            "norm": np.sqrt(np.square(solved.coefficients()).sum((0, 2))),
            "ridge": risks.min(0),
        }

    def limit(self, kind: str) -> np.ndarray:
        """The test risk of the kernel of infinitely many features, (noises,)."""
        train, size = self.data.inputs[: self.config.train_size], self.config.train_size
        inputs, test = (a.astype(np.float64) for a in (train, self.data.test_inputs))
        solved = LeastSquares(limit_kernel(kind, inputs, inputs), self.targets[:size])
        outputs = solved.predictions(limit_kernel(kind, test, inputs), [0.0])[0]
        return risk(outputs, self.test_targets)


def on_images(config: Config, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """All numbers on the images of one seed, medians over draws of the features.

    By kind of features, (noises, counts); `samples` likewise by sample sizes; `ensemble`.
    """
    images, n = Images(config, seed), config.train_size

    def medians(kind: str, cases: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        most = max(count for count, _ in cases)
        draws = [images.draw(kind, most, number) for number in range(config.draws)]
        fits = [[images.fit(kind, d, *case) for d in draws] for case in cases]
        return {
            name: np.stack([np.median([f[name] for f in case], axis=0) for case in fits], -1)
            for name in fits[0][0]
        }

    found = {kind: medians(kind, [(count, n) for count in config.counts]) for kind in KINDS}
    for kind in KINDS:
        found[kind]["limit"] = images.limit(kind)
    found["samples"] = medians("ReLU", [(n, size) for size in config.sample_sizes])
    found["ensemble"] = ensemble(config, images)
    return found


def ensemble(config: Config, images: Images) -> dict[str, np.ndarray]:
    """The risk of the mean output over the mean risk of single draws of the features, at N = n.

    Without ridge, and `ridge_` with the one that is best for the single ones: (noises,) each.
    """
    n = config.train_size
    single, total = 0.0, 0.0
    for member in range(config.members):
        drawn = images.draw("ReLU", n, member)
        outputs = images.solved("ReLU", drawn, n, n)[2]
        single = single + risk(outputs, images.test_targets) / config.members
        total = total + outputs / config.members
    together = risk(np.asarray(total), images.test_targets)
    single = np.asarray(single)
    best = single.argmin(0)
    every = np.arange(len(best))
    return {
        "ratio": together[0] / single[0],
        "ridge_ratio": together[best, every] / single[best, every],
    }
