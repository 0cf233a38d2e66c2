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


def test_takeuchi_leaves_out_what_is_flat():
    hessian = np.diag([4.0, 2.0, 1e-9, -1.0])
    covariance = np.diag([8.0, 2.0, 5.0, 5.0])
    assert experiment.takeuchi({"H": hessian, "C": covariance}, 10) == pytest.approx(0.3)


def _judged(first, last, kl, kl_by_c=3.0, *, fresh=(2.0, 1.1, 1.0, 1.2), takeuchi=0.3):
    """Cosines and overlaps from `first` to `last`; of fresh examples r(F, H) and r(C, F)."""

    def arm(hessian, covariance):
        names = [f"{kind}({a},{b})" for kind in ("s", "overlap") for a, b in experiment.PAIRS]
        pairs = dict.fromkeys(names, (first, last))
        pairs |= {"r(F,H)": hessian, "r(C,F)": covariance, "takeuchi": (0.3, takeuchi)}
        pairs |= {"gap": (0.01, 0.3)}
        found = {name: np.tile(pair, (3, 1)) for name, pair in pairs.items()}
        return found | {"kl": np.full((3, 2, 3), kl), "kl_by_c": np.full((3, 2, 3), kl_by_c)}

    runs = {"fitted": arm((2.0, 0.6), (1.0, 1 - last)), "fresh": arm(fresh[:2], fresh[2:])}
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {
        verdict: {v.claim.name for v in found if v.verdict == verdict}
        for verdict in ("reproduced", "void")
    }


def test_verdicts_on_made_up_runs():
    good = {"reproduced": set(experiment.lab.claims), "void": set()}
    assert _judged(0.3, 0.96, 1.001) == good
    # 2: KL against d'Fd without the half
    bad = _judged(0.4, 0.3, 2.0, fresh=(2.0, 2.0, 1.0, 0.1), takeuchi=0.05)
    assert not bad["reproduced"]
    assert "fisher-is-the-divergence" in _judged(0.3, 0.96, 1.0, kl_by_c=1.0)["void"]
