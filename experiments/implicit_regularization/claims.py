"""What is claimed, and the number of every claim."""

from __future__ import annotations

import numpy as np

from experiments.lib.verdicts.claims import Claim, by_name

_BARRETT = "Barrett & Dherin 2021"
_SMITH = "Smith et al. 2021"

CLAIMS = by_name(
    Claim(
        name="order-flow",
        statement="Order in h of one step's distance from the gradient flow; theory 2.",
        paper=_BARRETT, low=1.85, high=2.1, reason="1.93 to 1.94 on seeds 0-4",
    ),
    Claim(
        name="order-modified",
        statement="Order in h of one step's distance from the modified flow; theory 3.",
        paper=_BARRETT, low=2.8, high=3.1, reason="2.92 to 2.95 on seeds 0-4",
    ),
    Claim(
        name="horizon",
        statement="Distance from the modified over that from the gradient flow, after two "
        "units of time, at the smallest step.",
        paper=_BARRETT, high=0.3, reason="0.0548 to 0.0836 on seeds 0-4",
    ),
    Claim(
        name="epoch-order-isgr",
        statement="Order in h of the mean epoch's distance from the ISGR flow; theory 3.",
        paper=_SMITH, low=2.5, high=3.1, reason="2.57 to 2.71 on seeds 0-4",
    ),
    Claim(
        name="epoch-order-flow",
        statement="Order in h of the mean epoch's distance from the gradient flow; theory 2.",
        paper=_SMITH, low=1.5, high=2.2, reason="1.63 to 1.73 on seeds 0-4",
    ),
    Claim(
        name="epoch-isgr-closer",
        statement="Distance of the mean epoch from the ISGR flow over that from the IGR flow.",
        paper=_SMITH, high=0.7, reason="0.251 to 0.39 on seeds 0-4",
    ),
    Claim(
        name="large-step-lowers",
        statement="The largest tr F of the large step over that of the small one.",
        paper=_SMITH, high=0.6, reason="0.366 to 0.487 on seeds 0-4",
    ),
    Claim(
        name="explicit-lowers",
        statement="The largest tr F with the explicit term over that of the small step.",
        paper=_SMITH, high=0.6, reason="0.391 to 0.492 on seeds 0-4",
    ),
    Claim(
        name="explicit-recovers",
        statement="What the explicit term takes off the logarithm of the largest tr F, as a "
        "multiple of what the large step takes off.",
        paper=_SMITH, low=0.7, high=1.3, reason="0.817 to 0.989 on seeds 0-4",
    ),
    Claim(
        name="large-step-test",
        statement="Final test accuracy of the large step minus that of the small one.",
        paper=_SMITH, low=0.0, reason="-0.00644 to 0.0344 on seeds 0-4",
    ),
    Claim(
        name="explicit-test",
        statement="Final test accuracy with the explicit term minus that of the small step.",
        paper=_SMITH, low=0.0, reason="-0.015 to 0.0157 on seeds 0-4",
    ),
)  # fmt: skip


def numbers(distances: list[dict[str, list[float]]], runs: dict[str, dict[str, np.ndarray]]):
    """The measured number of every claim, one a seed."""

    def order(name):
        return np.array([np.log2(d[name][-2] / d[name][-1]) for d in distances])

    def ratio(a, b):
        return np.array([d[a][-1] / d[b][-1] for d in distances])

    top = {arm: r["trace_fisher"].max(1) for arm, r in runs.items()}
    final = {arm: r["test_accuracy"][:, -1] for arm, r in runs.items()}
    lowered = np.log(top["large step"] / top["small step"])
    return {
        "order-flow": order("step flow"),
        "order-modified": order("step modified"),
        "horizon": ratio("horizon modified", "horizon flow"),
        "epoch-order-isgr": order("epoch isgr"),
        "epoch-order-flow": order("epoch flow"),
        "epoch-isgr-closer": ratio("epoch isgr", "epoch modified"),
        "large-step-lowers": top["large step"] / top["small step"],
        "explicit-lowers": top["explicit"] / top["small step"],
        "explicit-recovers": np.log(top["explicit"] / top["small step"])
        / np.where(lowered == 0, np.nan, lowered),
        "large-step-test": final["large step"] - final["small step"],
        "explicit-test": final["explicit"] - final["small step"],
    }
