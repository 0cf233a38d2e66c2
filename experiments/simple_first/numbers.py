"""The numbers of the claims, one per seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.lab import Runs
from experiments.simple_first.fourier import learned_after

if TYPE_CHECKING:
    from experiments.simple_first import Config

CLEAN = 0.9
"""The share of the right labels that is fitted when wrong ones are looked at."""
PLATEAU = 0.95
"""The share of its plateau at which mu counts as being there."""


def first(reached: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of every seed (seeds, records) the value where a condition first holds; NaN if never."""
    found = np.take_along_axis(values, reached.argmax(1)[:, None], 1)[:, 0]
    return np.where(reached.any(1), found, np.nan)


def when_clean(name: str) -> Any:
    """The measure of a claim: a record where the right labels are first fitted."""
    return lambda runs, config: first(
        runs["noisy"]["clean_fit"] >= CLEAN, runs["noisy"][name].astype(float)
    )


def at_the_end(name: str) -> Any:
    """The null of a claim: the record at the end of training."""
    return lambda runs, config: runs["noisy"][name][:, -1]


def early_stopping(arm: str) -> Any:
    """The measure of a claim: the least test error over the last."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        error = 1 - runs[arm]["test_accuracy"]
        return error.min(1) / np.where(error[:, -1] > 0, error[:, -1], np.nan)

    return measure


def last(values: np.ndarray) -> np.ndarray:
    """The mean of the last tenth of the records, (seeds,): single ones are noisy."""
    return values[:, -max(1, values.shape[1] // 10) :].mean(1)


def on_plateau(runs: Runs, prefix: str = "") -> np.ndarray:
    """(seeds, records): whether mu is at its plateau."""
    mu = runs["two classes"][f"{prefix}mu"]
    return mu >= PLATEAU * last(mu)[:, None]


def rest_on_plateau(prefix: str) -> Any:
    """The measure of a claim: I(F; Y | L) when mu first is at its plateau, over its last value."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rest = runs["two classes"][f"{prefix}rest"]
        return first(on_plateau(runs, prefix), rest) / last(rest)

    return measure


def beyond_linear(runs: Runs, config: Config) -> np.ndarray:
    """The last accuracy less that of the linear classifier."""
    found = runs["two classes"]
    return last(found["accuracy"]) - found["linear_accuracy"][:, 0]


def beyond_linear_at_first(runs: Runs, config: Config) -> np.ndarray:
    """The null: the accuracy when mu first is at its plateau."""
    found = runs["two classes"]
    return first(on_plateau(runs), found["accuracy"]) - found["linear_accuracy"][:, 0]


def modes_off(name: str) -> Any:
    """The measure of a claim: the largest relative distance of a rate from eta lambda / n."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        each = [runs[f"width {w}"]["rates"] / runs[f"width {w}"][name] - 1 for w in config.widths]
        return abs(np.array(each)).max((0, 2))

    return measure


def apart(runs: Runs, config: Config) -> np.ndarray:
    """The distance of the wide network from its linearisation over that of the narrow one."""
    narrow, wide = (runs[f"width {width}"]["apart"] for width in config.widths)
    return wide / narrow


def apart_of_another(runs: Runs, config: Config) -> np.ndarray:
    """The null: another narrow network, that of the seed before; NaN with a single seed."""
    narrow = runs[f"width {config.widths[0]}"]["apart"]
    return np.roll(narrow, 1) / narrow if len(narrow) > 1 else np.full(1, np.nan)


def later(name: str) -> Any:
    """The measure of a claim: the steps to learn a sine over those for the one below, the least."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        steps = learned_after(runs["sines"][name], config.sine_every)
        return (steps[:, 1:] / steps[:, :-1]).min(1)

    return measure
