"""The claims fail on runs without a second descent, and on a control that falls as well."""

import numpy as np

from experiments import epoch_double_descent as experiment

POINTS = np.linspace(0.0, 1.0, 11)


def _phase(loss, trace, fitted=1.0, norm=1.0):
    values = {
        "test_loss": loss,
        "trace_fisher": trace,
        "sharpness": trace / 30,
        "noisy_fit": fitted + 0 * POINTS,
        "norm": 1 + (norm - 1) * POINTS,
    }
    return {name: np.tile(v, (3, 1)) for name, v in values.items()}


def _kept(fit, drift, control):
    runs = {"fit": fit, "drift": drift, "control": control}
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name for v in found if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    fit = _phase(1 + 0.3 * POINTS, 500 + 0 * POINTS)
    control = _phase(1.3 + 0.1 * POINTS, 500 + 10 * POINTS)
    assert _kept(fit, _phase(1.3 - 0.6 * POINTS, 500 - 400 * POINTS), control) == set(
        experiment.lab.claims
    )
    stays = _phase(1.3 + 0.1 * POINTS, 500 - 100 * POINTS)
    assert _kept(fit, stays, control) == {
        "memorising-hurts", "stays-fitted", "no-shrinkage", "control-loss", "control-fisher"
    }  # fmt: skip
    shrinks = _phase(1.3 + 0.1 * POINTS, 500 - 100 * POINTS, fitted=0.9, norm=0.5)
    falls = _phase(1.3 - 0.1 * POINTS, 500 - 10 * POINTS)
    assert not _kept(_phase(1 - 0.3 * POINTS, 500 + 0 * POINTS), shrinks, falls)
