"""Configurations: to JSON and back, what makes a run the run it is."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from experiments.lib.data.images import DataConfig
from experiments.lib.runs.identity import differences, from_dict, identity, to_dict
from experiments.lib.training.config import OptimizerConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class Sweep:
    rhos: tuple[float, ...] = (0.1, 0.2)
    run: RunConfig | None = field(default_factory=RunConfig)


@pytest.mark.parametrize("config", [Sweep(), Sweep(rhos=(), run=None)])
def test_a_configuration_survives_json(config):
    assert from_dict(Sweep, to_dict(config)) == config


def test_an_unknown_field_is_named():
    values = to_dict(RunConfig())
    values["train"]["momentum"] = 1
    with pytest.raises(ValueError, match="TrainConfig has no field momentum"):
        from_dict(RunConfig, values)


def test_identity_leaves_out_what_does_not_decide_the_result():
    plain = RunConfig()
    moved = dataclasses.replace(
        plain, data=DataConfig(data_dir="/x"), train=TrainConfig(keep_last=7, checkpoint_every=9)
    )
    assert identity(plain) == identity(moved)
    other = dataclasses.replace(plain, train=TrainConfig(optimizer=OptimizerConfig(sam_rho=0.1)))
    assert differences(identity(plain), identity(other)) == ["train.optimizer.sam_rho: null -> 0.1"]
