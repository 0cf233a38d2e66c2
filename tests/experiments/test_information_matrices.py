"""C, H and F: comparisons of matrices that are known, and claims that can fail."""

import numpy as np
import pytest

from experiments import information_matrices as experiment


def test_equal_and_orthogonal_matrices():
    a = np.diag([*np.arange(9.0, 0, -1), *[0.0] * 9])
    b = np.diag([*[0.0] * 9, *np.arange(9.0, 0, -1)])
    numbers = experiment.compare({"H": a, "C": 2 * a, "F": b})
    assert numbers["r(H,C)"] == pytest.approx(0.5)
    assert numbers["s(H,C)"] == pytest.approx(1)
    assert numbers["overlap(H,C)"] == pytest.approx(1)
    assert numbers["s(C,F)"] == numbers["overlap(F,H)"] == 0


def _kept(first, last, overlap, kl):
    runs = {f"s({a},{b})": np.tile([first, last], (3, 1)) for a, b in experiment.PAIRS}
    runs |= {"overlap(F,H)": np.tile([0.1, overlap], (3, 1)), "kl": np.full((3, 2, 3), kl)}
    runs["r(C,F)"] = np.tile([1.0, 1 - last], (3, 1))
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name for v in found if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    assert _kept(0.3, 0.95, 0.9, 1.001) == set(experiment.lab.claims)
    assert not _kept(0.4, 0.3, 0.5, 2.0)  # 2: KL against d'Fd without the half
