"""Tables of claims, and verdicts over all of them."""

import numpy as np
import pytest

from experiments.lib.judged import by_name, claims_of, judge_all

claim = claims_of("Nobody 2021", "made up")


def test_claims_of_a_paper_share_its_name_and_a_reason():
    rises, falls = claim("rises", "It rises.", 1.0), claim("falls", "It falls.", high=0, reason="x")
    assert (rises.paper, rises.low, rises.high, rises.reason) == ("Nobody 2021", 1, None, "made up")
    assert (falls.low, falls.high, falls.reason) == (None, 0, "x")


def test_two_claims_of_one_name_are_refused():
    with pytest.raises(ValueError, match="rises"):
        by_name(claim("rises", "It rises.", 1.0), claim("rises", "Again.", 2.0))


def test_numbers_come_by_seed_or_in_the_order_of_the_seeds():
    claims = by_name(claim("rises", "It rises.", 1.0), claim("falls", "It falls.", None, 0.0))
    numbers = {"falls": {7: 1.0, 8: 1.1}, "rises": np.array([2.0, 2.1])}
    rises, falls = judge_all(claims, numbers, range(7, 9))
    assert rises.values == {7: 2.0, 8: 2.1}
    assert (rises.verdict, falls.verdict) == ("reproduced", "not reproduced")
