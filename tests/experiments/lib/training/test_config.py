"""Impossible configurations of a training run are refused."""

import pytest

from experiments.lib.training.config import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "give steps or epochs"),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 1"),
    ],
)
def test_impossible_training_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
