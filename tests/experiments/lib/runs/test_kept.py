"""Results in files: what is there is not made again."""

import numpy as np
import pytest

from experiments.lib.runs.kept import each_seed, load_arrays, save_arrays
from experiments.lib.runs.shares import shared
from experiments.registry import Options


class Stop(Exception):
    pass


def test_a_seed_with_a_result_is_not_run_again(tmp_path):
    config = Options(out=tmp_path, seeds=3, first_seed=4, quiet=True)
    ran = []

    def run_seed(seed, folder):
        ran.append(seed)
        if len(ran) == 2:
            raise Stop
        return {"seed": seed, "bad": float("nan")}

    with pytest.raises(Stop):
        shared(config, each_seed(config, run_seed))
    results = shared(config, each_seed(config, run_seed))
    assert ran == [4, 5, 5, 6]
    assert results[6] == {"seed": 6, "bad": None}


def test_arrays_come_back(tmp_path):
    path = tmp_path / "new" / "a.npz"
    save_arrays(path, a=np.arange(3), path=np.eye(2))
    found = load_arrays(path)
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    np.testing.assert_array_equal(found["path"], np.eye(2))
