"""Verdicts are decided by the numbers: made-up ones get what they deserve."""

import math

import pytest

from experiments.lib.verdicts.claims import Claim, judge

CLAIM = Claim(name="c", statement="S.", paper="P", low=1.0, high=2.0, reason="made up")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({0: 1.5, 1: 1.6, 2: 1.4}, "reproduced"),
        ({0: 0.5, 1: 0.6, 2: 0.4}, "not reproduced"),
        ({0: 2.5, 1: 2.6, 2: 2.4}, "not reproduced"),
        ({0: 1.0, 1: 1.1, 2: 0.9}, "inconclusive"),  # the mean is on the bound
        ({0: 0.1, 1: 4.0, 2: 0.4}, "inconclusive"),  # the mean is inside, its error is not
        ({0: 1.5, 1: None, 2: 1.4}, "inconclusive"),
        ({0: 1.5, 1: math.nan, 2: 1.4}, "inconclusive"),
        ({0: math.inf, 1: 1.5, 2: 1.4}, "inconclusive"),
        ({}, "inconclusive"),
        ({0: 1.5}, "reproduced"),
        ({0: 2.5}, "not reproduced"),
    ],
)
def test_a_verdict_follows_from_the_numbers(values, verdict):
    assert judge(CLAIM, values).verdict == verdict


@pytest.mark.parametrize("bound", ["low", "high"])
@pytest.mark.parametrize(
    ("errors_inside", "verdict"),
    [
        (4.31, "reproduced"),  # the quantile of Student's t at two degrees of freedom is 4.303
        (4.29, "inconclusive"),  # more than that if the errors were taken of n, not of n - 1
        (-4.29, "inconclusive"),
        (-4.31, "not reproduced"),
    ],
)
def test_the_interval_of_three_seeds_decides(bound, errors_inside, verdict):
    """Their mean lies so many standard errors inside the only bound."""
    claim = Claim(name="c", statement="S.", paper="P", reason="made up", **{bound: 5.0})
    error = 0.1
    mean = 5.0 + (1 if bound == "low" else -1) * errors_inside * error
    spread = error * math.sqrt(3)  # the standard deviation, with n - 1, of -spread, 0, spread
    found = judge(claim, {0: mean - spread, 1: mean, 2: mean + spread})
    assert found.standard_error == pytest.approx(error)
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("null", "verdict", "mean"),
    [
        ({0: 1.5, 1: 1.6, 2: 1.4}, "void", 1.5),
        ({0: 0.5, 1: 0.6, 2: 0.4}, "reproduced", 0.5),
        ({0: 1.0, 1: 1.1, 2: 0.9}, "reproduced", 1.0),  # it does not pass: it may be either
        ({0: 1.0, 1: 1.0, 2: 1.0}, "void", 1.0),
        ({0: 1.5, 1: None, 2: 1.5}, "reproduced", None),
    ],
)
def test_a_claim_that_its_null_passes_is_void(null, verdict, mean):
    found = judge(CLAIM, {0: 1.5, 1: 1.6, 2: 1.4}, null)
    assert (found.verdict, found.null and round(found.null, 6)) == (verdict, mean)
    assert found.mean == pytest.approx(1.5)


def test_a_sign_has_no_margin():
    for bounds in ({"high": 0.9}, {"low": 0, "high": 1}):
        with pytest.raises(ValueError, match="a sign has one bound, 0 or 1; say margin"):
            Claim(name="c", statement="S.", paper="P", source="sign", **bounds)


@pytest.mark.parametrize(("bound", "side"), [("low", 1), ("high", -1)])
@pytest.mark.parametrize(
    ("values", "null", "verdict"),
    [
        ((1.0, 1.1, 0.9), (0, 0, 0), "reproduced"),
        ((1.0, 1.1, 0.9), (1e-6, 1e-6, 1e-6), "reproduced"),  # a little of the effect
        ((1.0, 1.1, 0.9), (1.0, 1.1, 0.9), "void"),  # all of it
        ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9), "void"),
        ((1.0, 1.1, 0.9), (-3.0, 4.0, 0.1), "reproduced"),  # it does not pass
        ((1.0, 9.0, 5.0), (0.9, 8.9, 4.9), "inconclusive"),  # its own interval reaches over 0
        ((5.0, 7.0, 6.0), (4.9, 6.9, 5.89), "reproduced"),  # beyond it seed by seed
        ((-1.0, -1.1, -0.9), (1.0, 1.1, 0.9), "not reproduced"),
        ((1.0, 1.1, 0.9), (0, math.nan, 0), "reproduced"),
        ((1.0,), (0.9,), "reproduced"),
        ((1.0,), (1.0,), "void"),
    ],
)
def test_a_sign_is_void_unless_it_is_beyond_its_null(bound, side, values, null, verdict):
    claim = Claim(name="c", statement="S.", paper="P", source="sign", **{bound: 0.0})
    numbers = ({seed: side * v for seed, v in enumerate(row)} for row in (values, null))
    assert judge(claim, *numbers).verdict == verdict


def test_the_interval_of_the_differences_decides():
    """Three seeds: the mean difference in standard errors against the quantile, 4.303."""
    claim = Claim(name="c", statement="S.", paper="P", source="sign", low=0.0)
    values = {0: 9.0, 1: 10.0, 2: 11.0}
    for errors, verdict in ((4.31, "reproduced"), (4.29, "void")):
        mean = errors * 0.1 / math.sqrt(3)  # differences of standard deviation 0.1
        null = {s: v - mean - 0.1 * (s - 1) for s, v in values.items()}
        assert judge(claim, values, null).verdict == verdict


def test_a_failure_is_no_less_one_where_the_null_passes():
    assert judge(CLAIM, {0: 3.0, 1: 3.1}, {0: 1.5, 1: 1.5}).verdict == "not reproduced"


def test_a_single_seed_has_no_standard_error():
    assert judge(CLAIM, {7: 1.5}).standard_error is None


def test_the_standard_error_is_that_of_the_mean():
    found = judge(CLAIM, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found.mean == 2.0
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("bounds", [{}, {"low": 2.0, "high": 1.0}])
def test_a_claim_must_accept_some_and_refuse_some(bounds):
    with pytest.raises(ValueError, match="accepts"):
        Claim(name="c", statement="S.", paper="P", reason="r", **bounds)
