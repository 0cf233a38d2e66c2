"""How much of what a classifier knows a linear one knows too, along training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from experiments.lib.data.small import SmallData
from experiments.lib.training import recipes
from experiments.lib.training.recipes import Recipe


def odd_or_even(data: SmallData) -> SmallData:
    """The same images in two classes, the even and the odd ones of the labels."""
    names = ("targets", "clean_targets", "test_targets")
    return data._replace(**{name: getattr(data, name) % 2 for name in names})


def answers(
    recipe: Recipe, params: Any, model_state: Any, data: SmallData, key: Any
) -> dict[str, jax.Array]:
    """Records the class that the network gives every test example."""
    del key
    found = recipes.logits(recipe, params, model_state, data.test_inputs)
    return {"answers": found.argmax(-1).astype(np.int8)}


def linear_answers(data: SmallData) -> np.ndarray:
    """The classes that logistic regression on the training examples gives the test examples."""
    flat = lambda inputs: inputs.reshape(len(inputs), -1)  # noqa: E731
    classifier = LogisticRegression(max_iter=2000).fit(flat(data.inputs), data.targets)
    return classifier.predict(flat(data.test_inputs))


def with_errors_elsewhere(labels: np.ndarray, like: np.ndarray, seed: int) -> np.ndarray:
    """Answers that are wrong as often as `like`, for either class, but at random examples."""
    rng, found = np.random.default_rng([seed, 6]), labels.copy()
    for label in (0, 1):
        of_class = np.flatnonzero(labels == label)
        count = int((like[of_class] != label).sum())
        found[rng.permutation(of_class)[:count]] = 1 - label
    return found


def conditional(given: np.ndarray, labels: np.ndarray, on: np.ndarray) -> float:
    """I(F; Y | L) in nats, of the empirical distribution of three labellings."""
    values, counts = np.unique(on, return_counts=True)
    shares = counts / counts.sum()
    parts = [mutual_info_score(given[on == v], labels[on == v]) for v in values]
    return float(np.dot(shares, parts))


def information(found: np.ndarray, labels: np.ndarray, linear: np.ndarray) -> dict[str, np.ndarray]:
    """Along training, (records,): I(F; Y), I(F; Y | L), mu = their difference, and agreement.

    mu_Y(F; L) is how much of what F tells of Y is told by L as well (Kalimeris et al., section 2).

    Args:
      found: (records, m) answers of the network F.
      labels: (m,) Y.
      linear: (m,) answers of the linear classifier L.
    """
    whole = np.array([mutual_info_score(f, labels) for f in found])
    rest = np.array([conditional(f, labels, linear) for f in found])
    return {
        "whole": whole, "rest": rest, "mu": whole - rest,
        "agreement": (found == linear).mean(1), "accuracy": (found == labels).mean(1),
        "linear_accuracy": np.full(len(found), (linear == labels).mean()),
    }  # fmt: skip
