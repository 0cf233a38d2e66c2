"""Claims of papers, judged by code: a measured number, the accepted range, the verdict.

    settles = Claim(name="settles", statement="Sharpness settles at 2/eta.",
                    paper="Cohen et al. 2021", low=0.97, high=1.03, source="theory")
    judge(settles, {100: 1.01, 101: 0.99}).verdict

Accepted ranges stand in code and are set on other seeds than those that are judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from experiments.lib.verdicts.statistics import mean_and_error, student

Judgement = Literal["reproduced", "not reproduced", "inconclusive", "void", "not judged"]
Source = Literal["paper", "theory", "sign", "margin", "seeds"]
"""Where a range comes from: the paper's number, theory, the sign of an effect (0 of a difference or
a correlation, 1 of a ratio), a margin beyond it that we chose; or other seeds than those that are
judged, the weakest."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, as a range of one measured number."""

    name: str
    """A short name, words joined by hyphens."""

    statement: str
    """One sentence; it says what is measured."""

    paper: str
    """Where it is claimed."""

    low: float | None = None
    """The least accepted value; None for no bound ..."""

    high: float | None = None
    """... and the largest."""

    source: Source = "seeds"
    """Where the range comes from ..."""

    reason: str = ""
    """... and more about that."""

    def __post_init__(self):
        if self.source not in get_args(Source):
            raise ValueError(
                f"claim {self.name!r}: source is one of {', '.join(get_args(Source))}, not "
                f"{self.source!r}"
            )
        if self.source == "sign" and {self.low, self.high} not in ({None, 0}, {None, 1}):
            raise ValueError(f"claim {self.name!r}: a sign has one bound, 0 or 1; say margin")
        if self.low is None and self.high is None:
            raise ValueError(f"claim {self.name!r} accepts every number: give low or high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"claim {self.name!r} accepts no number: low is above high")


class Verdict(NamedTuple):
    """A claim beside its measurement.

    Attributes:
      claim: the claim.
      values: the measured number of each seed; None where it is missing.
      mean: their mean; None unless all are there and finite.
      standard_error: of the mean; None with a single seed.
      verdict: see `judge`.
      null: the mean of what must not pass; None where there is nothing of the kind.
    """

    claim: Claim
    values: dict[int, float | None]
    mean: float | None
    standard_error: float | None
    verdict: Judgement
    null: float | None = None


def judge(
    claim: Claim, values: Mapping[int, Any], null: Mapping[int, Any] | None = None
) -> Verdict:
    """Compares the numbers of all seeds with the accepted range.

    Args:
      claim: the claim.
      values: its number for each seed.
      null: the same number of something for which the claim must fail.

    Returns:
      `inconclusive` if a number is missing or not finite, or if the 95 % interval of the mean
      (Student's t) reaches over a bound; `reproduced` if that interval lies in the range; else `not
      reproduced`. A single seed has no interval and counts by its value alone.
      What would be reproduced is `void` if the null lies in the range as well, so that the claim
      says nothing. At the bound of a sign there is no effect, but a null is rarely there exactly:
      one that passes by a little makes a sign void only if that is not beyond it, which is to say
      that the 95 % interval of the differences of each seed from its null reaches over zero.
    """
    found = _compared(claim, values)
    if null is None:
        return found
    other = _compared(claim, null)
    void = found.verdict == other.verdict == "reproduced" and not (
        claim.source == "sign" and _beyond(claim, values, null)
    )
    return found._replace(null=other.mean, **({"verdict": "void"} if void else {}))


def _beyond(claim: Claim, values: Mapping[int, Any], null: Mapping[int, Any]) -> bool:
    """Whether the paired differences from the null lie on the side that a sign asks for."""
    side = 1 if claim.high is None else -1
    mean, error = mean_and_error([side * (float(v) - float(null[s])) for s, v in values.items()])
    return mean > (0.0 if error is None else student(len(values)) * error)


def _compared(claim: Claim, values: Mapping[int, Any]) -> Verdict:
    numbers = {int(s): None if v is None else float(v) for s, v in values.items()}
    known = [v for v in numbers.values() if v is not None and math.isfinite(v)]
    if not known or len(known) < len(numbers):
        return Verdict(claim, numbers, None, None, "inconclusive")
    mean, error = mean_and_error(known)
    reach = 0.0 if error is None else student(len(known)) * error
    low = -math.inf if claim.low is None else claim.low
    high = math.inf if claim.high is None else claim.high
    verdict: Judgement = "not reproduced"
    if low <= mean - reach and mean + reach <= high:
        verdict = "reproduced"
    elif mean + reach >= low and mean - reach <= high:
        verdict = "inconclusive"
    return Verdict(claim, numbers, mean, error, verdict)
