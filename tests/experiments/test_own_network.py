"""A stranger's network and data go through an experiment by the command line alone."""

import re
import textwrap

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.lib.runs import rundir

NETWORK = textwrap.dedent("""
    import flax.linen as nn


    class Tiny(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.Conv(4, (3, 3), (2, 2))(x))
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


    tiny = Tiny
""")


@pytest.fixture
def folder(tmp_path, monkeypatch, quick_compilation):
    (tmp_path / "my_nets.py").write_text(NETWORK)
    draw = np.random.RandomState(0)
    targets = draw.randint(0, 3, 80)
    images = 40 * targets[:, None, None, None] + 100 * draw.rand(80, 6, 5, 1)
    np.savez(tmp_path / "my.npz", inputs=images.astype(np.uint8), targets=targets)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


TINY = {
    "random_labels": "--preset smoke",
    "edge_of_stability": "--preset real --seeds 1 --train-size 20 --arms gd --steps 8 "
    "--flow-steps 8 --every 4 --chunk 8 --taylor-steps 2",
}


@pytest.mark.parametrize(
    "name", ["edge_of_stability", pytest.param("random_labels", marks=pytest.mark.slow)]
)
def test_own_network_and_data(name, folder):
    options = "--network my_nets:tiny --data my.npz --out out --quiet"
    assert main([name, *TINY[name].split(), *options.split()]) == 0
    summary = rundir.read_json(folder / "out" / "summary.json")
    assert re.search(r"--(recipe|architecture)\.network my_nets:tiny", summary["command"])
    assert "--data my.npz" in summary["command"]
    measured = [value for claim in summary["claims"] for value in claim["values"].values()]
    assert any(value is not None for value in measured)
