"""What experiments that judge claims share: their options, a table of claims, all verdicts.

    _claim = claims_of("Cohen et al. 2021", "set on seeds 0-4")
    CLAIMS = by_name(_claim("rises", "It rises.", 1.0, None), ...)
    verdicts = judge_all(CLAIMS, numbers, config.seed_range())

The ranges are constants of the module, fixed before the judged seeds are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.lib.claims import Claim, Verdict, judge
from experiments.lib.curves import by_seed
from experiments.registry import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(ExperimentConfig):
    """The options of an experiment with the judged seeds and a small data set as its defaults."""

    seeds: int = 3
    """How many seeds to run."""

    first_seed: int = 100
    """The first seed; the others follow it."""

    data: str = "digits"
    """The data set."""


class MakeClaim(Protocol):
    """`make(name, statement, low, high)`, with another reason if one is given."""

    def __call__(
        self,
        name: str,
        statement: str,
        low: float | None = None,
        high: float | None = None,
        *,
        reason: str | None = None,
    ) -> Claim:
        """Returns the claim."""
        ...


def claims_of(paper: str, reason: str) -> MakeClaim:
    """Makes claims of one paper, with one reason for their ranges unless another is given."""
    given = reason

    def make(name, statement, low=None, high=None, *, reason=None) -> Claim:
        return Claim(
            name=name,
            statement=statement,
            paper=paper,
            low=low,
            high=high,
            reason=reason or given,
        )

    return make


def by_name(*claims: Claim) -> dict[str, Claim]:
    """The claims under their names.

    Raises:
      ValueError: two have the same name.
    """
    found = {claim.name: claim for claim in claims}
    if len(found) < len(claims):
        names = [claim.name for claim in claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two claims of one name: {', '.join(twice)}")
    return found


def judge_all(
    claims: Mapping[str, Claim], numbers: Mapping[str, Any], seeds: Sequence[int]
) -> list[Verdict]:
    """Judges every claim by its number for every seed.

    Args:
      claims: by name.
      numbers: for the name of each claim its number by seed, or one number a seed in their order.
      seeds: the seeds.

    Returns:
      The verdicts in the order of the claims.
    """

    def of_seeds(values: Any) -> Mapping[int, Any]:
        return values if isinstance(values, Mapping) else by_seed(seeds, values)

    return [judge(claim, of_seeds(numbers[name])) for name, claim in claims.items()]
