"""What the claims measure: numbers of the arms where training ends, one per seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.sam_vs_sgd.bound import complexity
from experiments.sam_vs_sgd.training import LONGER, NOISES, Runs


def value(runs: Runs, arm: str, on: float | str, name: str) -> np.ndarray:
    """A number of every seed; NaN where the training loss was not reached."""
    records = runs[arm, on]
    derived = {
        "normalized": lambda: records["sharpness"] * records["norm"] ** 2,
        "outlying": lambda: records["sharpness"] / records["eigenvalues"][:, 4],
    }
    found = derived[name]() if name in derived else records[name]
    return np.where(records["reached"], found, np.nan)


def over_sgd(name: str, noise: float, arm: str) -> Any:
    """The measure of a claim: what a number is of that of SGD."""
    return lambda runs, config: value(runs, arm, noise, name) / value(runs, "SGD", noise, name)


def over_random(noise: float, arm: str) -> Any:
    """The measure of a claim: the first eigenvalue over the fifth, over that of random steps."""
    name = "outlying"
    return lambda runs, config: value(runs, arm, noise, name) / value(runs, "random", noise, name)


def gain(noise: float, arm: str, over: str = "random") -> Any:
    """The measure of a claim: test accuracy, an arm minus random steps or another one."""
    name = "test_accuracy"
    return lambda runs, config: value(runs, arm, noise, name) - value(runs, over, noise, name)


def gain_at_equal_cost(noise: float, arm: str) -> Any:
    """The measure of a claim: test accuracy, an arm minus SGD that has cost as much as SAM."""
    return gain(noise, arm, LONGER)


def gains_more(arm: str) -> Any:
    """The measure of a claim: what an arm gains more with wrong labels than with right ones."""
    clean, wrong = (gain(noise, arm) for noise in NOISES)
    return lambda runs, config: wrong(runs, config) - clean(runs, config)


def exponent(noise: float, *ladder: str) -> Any:
    """The measure of a claim: that of the radius in the largest eigenvalue, over three arms."""

    def measure(runs: Runs, config: Any) -> np.ndarray:
        # The null has no small radii: SGD stands for them.
        small = [f"rho {rho:g}" for rho in config.rhos[:-1]]
        arms = ladder if len(ladder) == len(config.rhos) else (*small, *ladder)
        tops = np.log([value(runs, arm, noise, "sharpness") for arm in arms])
        x = np.log(config.rhos)
        x = x - x.mean()
        return x @ tops / (x @ x)

    return measure


def terms(runs: Runs, config: Any, arm: str, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The two terms of the paper's bound: the largest loss within rho, and h."""
    weights = int(runs[arm, noise]["weights"][0])
    sizes = {"weights": weights, "examples": config.train_size}
    norm = value(runs, arm, noise, "norm")
    largest = value(runs, arm, noise, "largest_loss")
    return largest, complexity(norm, rho=config.measured_rho, **sizes)


def bound_over_sgd(noise: float, arm: str) -> Any:
    """The measure of a claim: the paper's bound, an arm minus SGD."""
    return lambda runs, config: (
        sum(terms(runs, config, arm, noise)) - sum(terms(runs, config, "SGD", noise))
    )


def reductions(runs: Runs, config: Any, arm: str) -> dict[float | str, np.ndarray]:
    """Of every task the part of SGD's test error that an arm is without."""

    def error(of: str, on: float | str) -> np.ndarray:
        found = 1 - value(runs, of, on, "test_accuracy")
        return np.where(found > 0, found, np.nan) if of == "SGD" else found

    return {on: 1 - error(arm, on) / error("SGD", on) for on in (*NOISES, *config.tasks)}


def mean_reduction(arm: str) -> Any:
    """The measure of a claim: the relative reduction of the test error, mean over tasks."""
    return lambda runs, config: np.mean([*reductions(runs, config, arm).values()], axis=0)


def reduced(arm: str) -> Any:
    """The measure of a claim: on which part of the tasks the error is smaller; a draw is a half."""

    def measure(runs: Runs, config: Any) -> np.ndarray:
        found = np.array([*reductions(runs, config, arm).values()])
        return np.where(np.isnan(found), np.nan, (np.sign(found) + 1) / 2).mean(0)

    return measure
