"""The conjectures of the paper as numbers of the records, and their accepted ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.break_even_point.training import SHOWN, Records
from experiments.lib.verdicts.claims import Claim, by_name, claims_of

if TYPE_CHECKING:
    from experiments.break_even_point import Config


LEARNED = 0.97
"""Training accuracy up to which is compared."""


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of 9 of medians of 9: single spikes late in training do not count."""
    for mean in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 4, mode="edge"), 9)
        values = mean(windows, -1)
    return values


def largest(records: Records, quantity: str, seed: int) -> float:
    """The largest smoothed value until nearly everything is learned."""
    if quantity.startswith("ratio_"):
        of = quantity.removeprefix("ratio_")
        values = records[f"trace_{of}"][seed] / records[f"lambda_{of}"][seed]
    else:
        values = records[quantity][seed]
    learned = np.flatnonzero(records["accuracy"][seed] >= LEARNED)
    end = max(learned[0], 5) if len(learned) else len(values)
    return float(smooth(values[:end]).max())


def break_even(slow: Records, fast: Records, seed: int) -> int | None:
    """The measurement at which the slow arm's tr K passes the fast arm's largest."""
    passed = np.flatnonzero(smooth(slow["trace_K"][seed]) > largest(fast, "trace_K", seed))
    return int(passed[0]) if len(passed) else None


def divergence(slow: Records, fast: Records, seed: int) -> float | None:
    """Mean distance of the slow arm's predictions to the fast arm's path, after over before."""
    at = break_even(slow, fast, seed)
    learned = np.flatnonzero(slow["accuracy"][seed] >= LEARNED)
    end = int(learned[0]) if len(learned) else len(slow["accuracy"][seed])
    if at is None or at < 2 or at + 2 > end:
        return None
    distance = nearest(slow["predictions"][seed], fast["predictions"][seed])
    return float(distance[at:end].mean() / distance[:at].mean())


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For every row of a the distance to the closest row of b, per example of the predictions."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (a, b))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0).min(1) / SHOWN)


_PAPER = "Jastrzebski et al. 2020"
_SEEDS = "set on seeds 0 and 1"
_MORE_SEEDS = "set on seeds 0-2 and 10-12"
_SIGN = "the sign of the conjecture"

QUANTITIES = {
    "lambda-h": ("lambda_H", "lambda_H"),
    "lambda-k": ("lambda_K", "lambda_K"),
    "trace-k": ("trace_K", "tr K"),
    "lambda-b": ("lambda_B", "lambda_K of batch gradients"),
    "trace-b": ("trace_B", "tr K of batch gradients"),
}
"""The name of each measured quantity in claims, in records and in words."""

_COMPARED = {
    "rate": "the smallest learning rate over that with the largest",
    "batch": "the largest batch over that with the smallest",
    "norm-rate": "batch norm and the smallest learning rate over that with the largest",
}


_claim = claims_of(_PAPER, _SEEDS)


def _less(by: str, quantity: str, low: float, reason: str = _SEEDS) -> Claim:
    return _claim(
        f"{by}-reduces-{quantity}",
        f"The largest {QUANTITIES[quantity][1]} with {_COMPARED[by]}.",
        low,
        reason=reason,
    )


CLAIMS = by_name(
    _less("rate", "lambda-h", 2.0),
    _less("rate", "lambda-k", 1.0),
    _less("rate", "trace-k", 1.25),
    _less("rate", "lambda-b", 1.3, _MORE_SEEDS),
    _less("rate", "trace-b", 1.3, _MORE_SEEDS),
    _less("batch", "lambda-h", 1.7),
    _less("batch", "lambda-k", 1.0),
    _less("batch", "trace-k", 1.15),
    _less("batch", "lambda-b", 1.0, _SIGN),
    _less("batch", "trace-b", 1.25, "set on seeds 0-2"),
    _claim(
        "sharpness-within-stability",
        "The largest lambda_H with the largest learning rate, times rate / 2.",
        high=1.1,
    ),
    _claim(
        "rate-preconditions",
        "Largest tr K / lambda_K with the largest rate over that with the smallest.",
        low=1.0,
        reason=_SIGN,
    ),
    _claim(
        "rate-preconditions-batches",
        "The same of the gradients of batches.",
        low=1.0,
        reason=_SIGN,
    ),
    _claim(
        "batch-preconditions",
        "Largest tr K / lambda_K with the smallest batch over that with the largest.",
        low=1.0,
        reason=_SIGN,
    ),
    _claim(
        "paths-part-at-the-break-even-point",
        "Mean distance of the small rate's predictions to the path of the large "
        "rate's, after the break-even point over before.",
        low=1.2,
    ),
    _less("norm-rate", "lambda-h", 3.0, _MORE_SEEDS),
    _less("norm-rate", "lambda-b", 1.7, _MORE_SEEDS),
    _less("norm-rate", "trace-b", 1.8, _MORE_SEEDS),
    _claim(
        "norm-sharpness-within-stability",
        "With batch norm, the largest lambda_H with the largest rate, times rate / 2.",
        high=1.1,
        reason=_MORE_SEEDS,
    ),
    _claim(
        "norm-rate-preconditions",
        "With batch norm, the largest tr K / lambda_K of batch gradients with the largest "
        "rate over that with the smallest.",
        low=1.0,
        reason=_SIGN,
    ),
    _claim(
        "norm-alone-does-not-flatten",
        "The largest lambda_K of batch gradients with the smallest rate, with batch norm "
        "over without.",
        low=1.3,
        reason=_MORE_SEEDS,
    ),
    _claim(
        "norm-conditions",
        "The largest tr K / lambda_K of batch gradients with the largest rate, with batch "
        "norm over without.",
        low=1.0,
        reason=_MORE_SEEDS,
    ),
)


class Roles(NamedTuple):
    """The arms that are compared, by name."""

    fast: str
    slow: str
    small: str
    large: str
    norm_fast: str
    norm_slow: str


def roles(config: Config) -> Roles:
    """The extremes of the learning rates and of the batch sizes."""
    return Roles(
        f"rate_{config.rates[0]:g}",
        f"rate_{config.rates[-1]:g}",
        f"batch_{config.batch_sizes[0]}",
        f"batch_{config.batch_sizes[-1]}",
        f"norm_rate_{config.norm_rates[0]:g}",
        f"norm_rate_{config.norm_rates[-1]:g}",
    )


def measure(config: Config, records: dict[str, Records]) -> dict[str, dict]:
    """The number of every claim for every seed."""
    fast, slow, small, large, norm_fast, norm_slow = roles(config)
    found: dict[str, dict[int, float | None]] = {name: {} for name in CLAIMS}
    for i, seed in enumerate(config.seed_range()):

        def top(arm: str, quantity: str, i: int = i) -> float:
            return largest(records[arm], quantity, i)

        for name, (quantity, _) in QUANTITIES.items():
            found[f"rate-reduces-{name}"][seed] = top(slow, quantity) / top(fast, quantity)
            found[f"batch-reduces-{name}"][seed] = top(large, quantity) / top(small, quantity)
            if name.endswith("-k"):  # with batch norm no example has a gradient of its own
                continue
            found[f"norm-rate-reduces-{name}"][seed] = top(norm_slow, quantity) / top(
                norm_fast, quantity
            )
        found["rate-preconditions"][seed] = top(fast, "ratio_K") / top(slow, "ratio_K")
        found["rate-preconditions-batches"][seed] = top(fast, "ratio_B") / top(slow, "ratio_B")
        found["batch-preconditions"][seed] = top(small, "ratio_K") / top(large, "ratio_K")
        found["norm-rate-preconditions"][seed] = top(norm_fast, "ratio_B") / top(
            norm_slow, "ratio_B"
        )
        edge, norm_edge = (rates[0] / 2 for rates in (config.rates, config.norm_rates))
        found["sharpness-within-stability"][seed] = top(fast, "lambda_H") * edge
        found["norm-sharpness-within-stability"][seed] = top(norm_fast, "lambda_H") * norm_edge
        found["norm-alone-does-not-flatten"][seed] = top(norm_slow, "lambda_B") / top(
            slow, "lambda_B"
        )
        found["norm-conditions"][seed] = top(norm_fast, "ratio_B") / top(fast, "ratio_B")
        found["paths-part-at-the-break-even-point"][seed] = divergence(
            records[slow], records[fast], i
        )
    return found
