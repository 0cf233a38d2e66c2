"""What is claimed, and the number of every claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.edge_of_stability.training import (
    ADAM,
    CROSS_ENTROPY,
    GD,
    NESTEROV,
    POLYAK,
    SGD,
    SLOWER,
    crossing,
)
from experiments.lib.verdicts.claims import Claim, by_name, claims_of

if TYPE_CHECKING:
    from experiments.edge_of_stability import Config

_COHEN, _ADAM_PAPER = "Cohen et al. 2021", "Cohen et al. 2022"
_SEEDS = "set on seeds 0-4"


def _settles(name: str, what: str, paper: str, low: float, high: float) -> Claim:
    return Claim(
        name=f"{name}-settles-at-the-edge",
        statement=f"Over the last half of {what} the mean of sharpness / threshold is 1.",
        paper=paper,
        low=low,
        high=high,
        reason=_SEEDS,
    )


_claim = claims_of(_COHEN, _SEEDS)

CLAIMS = by_name(
    _settles("gd", "gradient descent", _COHEN, 0.98, 1.04),
    _settles("gd-slower", "gradient descent with a smaller step", _COHEN, 0.98, 1.04),
    _settles("polyak", "heavy ball", _COHEN, 0.95, 1.03),
    _settles("nesterov", "Nesterov's method", _COHEN, 0.97, 1.03),
    _settles("adam", "Adam (its preconditioned sharpness)", _ADAM_PAPER, 0.95, 1.03),
    _claim(
        "gd-stays-within-the-edge",
        "The 99th percentile of sharpness / threshold over the last half is little above 1.",
        0.98,
        1.08,
    ),
    _claim(
        "sgd-stays-below",
        "SGD with the same step settles at a smaller sharpness / threshold.",
        None,
        0.95,
    ),
    _claim(
        "cross-entropy-reaches-the-edge",
        "With cross-entropy the largest sharpness / threshold is at least 1 ...",
        1.0,
        None,
    ),
    _claim(
        "cross-entropy-falls-at-the-end",
        "... and the last sharpness is well below the largest.",
        None,
        0.7,
    ),
    _claim("loss-ends-low", "The last training loss; it is 1.5 at first.", None, 0.03),
    _claim(
        "loss-oscillates-at-the-edge",
        "Share of the steps of the last half of gradient descent that raise the loss.",
        0.25,
        0.6,
    ),
    _claim(
        "loss-falls-monotonically-before",
        "Steps that raise the loss before the sharpness first crosses 2 / eta.",
        None,
        0.0,
    ),
    _claim(
        "gradient-flow-goes-beyond",
        "Largest sharpness of gradient flow over gradient descent's 2 / eta.",
        1.3,
        None,
    ),
    _claim(
        "descent-follows-the-flow-before",
        "Distance of descent and flow over the way of the flow, at the crossing.",
        None,
        0.15,
    ),
    _claim(
        "descent-leaves-the-flow-at-the-edge",
        "Distance of descent and flow at the end of the flow over that at the crossing.",
        3.0,
        None,
    ),
    _claim(
        "quadratic-model-before",
        "log10 of quadratic model / loss after the steps on both, from half of the crossing.",
        -0.3,
        0.3,
    ),
    _claim(
        "quadratic-model-edge",
        "The same from the point of largest sharpness at the edge.",
        4.0,
        None,
    ),
)


def measure(
    config: Config,
    records: dict[str, dict[str, np.ndarray]],
    ratios: dict[str, np.ndarray],
    flow: dict[str, np.ndarray],
    models: dict[str, np.ndarray],
) -> dict[str, dict[int, float | None]]:
    """The number of every claim for every seed."""
    missing: dict[int, float | None] = dict.fromkeys(config.seed_range())
    found = {name: dict(missing) for name in CLAIMS}
    for i, seed in enumerate(config.seed_range()):
        late = {name: r[i, r.shape[1] // 2 :] for name, r in ratios.items()}
        for name in set(late) & {GD, SLOWER, POLYAK, NESTEROV, ADAM}:
            found[f"{name.replace('_', '-')}-settles-at-the-edge"][seed] = float(late[name].mean())
        found["gd-stays-within-the-edge"][seed] = float(np.quantile(late[GD], 0.99))
        if SGD in late:
            found["sgd-stays-below"][seed] = float(late[SGD].mean())
        if CROSS_ENTROPY in late:
            ratio = ratios[CROSS_ENTROPY][i]
            found["cross-entropy-reaches-the-edge"][seed] = float(ratio.max())
            found["cross-entropy-falls-at-the-end"][seed] = float(ratio[-1] / ratio.max())
        first = crossing(ratios[GD][i])
        rises = np.diff(records[GD]["loss"][i]) > 0
        found["loss-ends-low"][seed] = float(records[GD]["loss"][i, -1])
        found["loss-oscillates-at-the-edge"][seed] = float(rises[len(rises) // 2 :].mean())
        # One update later an instability may show in the loss; none before.
        found["loss-falls-monotonically-before"][seed] = (
            None if first is None else float(rises[: first * config.every].sum())
        )
        found["gradient-flow-goes-beyond"][seed] = float(
            flow["sharpness"][i].max() * config.learning_rate / 2
        )
        distance = flow["distance"][i]
        if first is not None and first < len(distance):
            found["descent-follows-the-flow-before"][seed] = float(
                distance[first] / flow["moved"][i, first]
            )
            found["descent-leaves-the-flow-at-the-edge"][seed] = float(
                distance[-1] / distance[first]
            )
        for name in ("before", "edge"):
            loss, model = models[name][i, :, -1]
            found[f"quadratic-model-{name}"][seed] = float(np.log10(abs(model) / loss))
    return found
