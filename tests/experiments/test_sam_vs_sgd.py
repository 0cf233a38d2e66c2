"""The claims fail where SAM is no flatter."""

import numpy as np

from experiments import sam_vs_sgd as experiment


def _end(top, test, *, reached=True):
    size = 3  # seeds
    return {
        "reached": np.full(size, reached),
        "sharpness": np.full(size, float(top)),
        "trace": np.full(size, 50.0 * top**0.4),
        "sam_sharpness": np.full(size, 0.02 * top),
        "test_accuracy": np.full(size, float(test)),
    }


FOUND = {
    "SGD": (14, 0.7), "rho 0.05": (8, 0.72), "rho 0.1": (4, 0.76), "SAM": (2.4, 0.8),
    "p 1.5": (3.0, 0.79), "p inf": (3.0, 0.79),
}  # fmt: skip


def _verdicts(changed=(), **options):
    runs = {
        (arm, noise): _end(top, test if noise else 0.95 + 0.05 * (test - 0.7), **options)
        for arm, (top, test) in {**FOUND, **dict(changed)}.items()
        for noise in experiment.NOISES
    }
    config = experiment.Config(seeds=3)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    useless = {arm: (14.5, 0.695) for arm in FOUND if arm != "SGD"}
    assert set(_verdicts(useless).values()) == {"not reproduced"}
    assert set(_verdicts(reached=False).values()) == {"inconclusive"}
