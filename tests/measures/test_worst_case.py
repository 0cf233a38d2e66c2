"""One step of the ascent: what is accepted, how far the next one looks, what is kept."""

import math

import jax.numpy as jnp
import pytest

from flatjax.measures import _worst_case as worst_case


def ascend(values):
    """From 0 in [-1, 1] with the gradient 1 everywhere; the loss of each trial is as told."""
    told = iter(values)
    one = jnp.float32(1)
    start = jnp.float32(0)
    return worst_case.maximise(
        lambda y: (jnp.float32(next(told)), one), start, (start, one), math.inf, len(values)
    )


# The linear model rises by 1 over the first step: a ten-thousandth of that must come.
@pytest.mark.parametrize("value", [2e-4, 1.0])
def test_a_sufficient_rise_is_accepted(value):
    state = ascend([value])
    assert (float(state.point), float(state.step)) == (1.0, 1.0)
    assert float(state.value) == pytest.approx(value)


@pytest.mark.parametrize("value", [5e-5, 0.0, -5e-5, -1.0, math.nan, math.inf])
def test_anything_else_is_refused_and_the_step_halved(value):
    state = ascend([value])
    assert (float(state.point), float(state.value)) == (0.0, 0.0)
    assert (float(state.step), float(state.trial)) == (0.5, 0.5)


def test_steps_are_halved_until_one_rises_and_then_whole_again():
    state = ascend([-1.0, -1.0, 0.2])
    assert (float(state.point), float(state.step)) == (0.25, 1.0)
    assert float(state.value) == pytest.approx(0.2)
    assert float(state.first_value) == -1.0


def test_a_search_spends_what_it_says_and_keeps_the_best(key):
    calls = []

    def evaluate(y):
        calls.append(y)
        return y.sum(), jnp.ones_like(y)

    ball = worst_case.Scaling(jnp.array([2.0, 3.0]))
    found = worst_case.search(evaluate, ball, math.inf, 2, 3, key)
    assert len(calls) == found.num_gradients == 7
    assert (float(found.loss), float(found.value), float(found.gap)) == (0.0, 2.0, 0.0)
    assert found.perturbation.tolist() == [2.0, 3.0]
    assert found.starts.tolist() == [2.0, 2.0, 2.0]
