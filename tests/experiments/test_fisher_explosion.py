"""The claims fail where no penalty helps."""

import numpy as np

from experiments import fisher_explosion as experiment


def _runs(final, trace):
    epochs = np.tile(np.arange(0, 30, 10), (3, 1))
    noise = np.array([[-0.001], [0.0], [0.001]])
    return {
        arm: {
            "epoch": epochs,
            "test_accuracy": final[arm] + noise + 0 * epochs,
            "trace_fisher": trace[arm] * (1 + noise) + 0.0 * epochs,
        }
        for arm in experiment.ARMS
    }


TRACE = {"eta*": 40, "middle": 80, "baseline": 130, "GP_x": 70, "GP": 24, "FP": 15, "GP_r": 12}
FINAL = {"eta*": 0.74, "middle": 0.71, "baseline": 0.7, "GP_x": 0.78, "GP": 0.83, "FP": 0.88,
         "GP_r": 0.87}  # fmt: skip


def _verdicts(final, trace):
    config = experiment.Config(seeds=3, early_epochs=10)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(_runs(final, trace), config)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(FINAL, TRACE).values()) == {"reproduced"}
    useless = FINAL | {"eta*": 0.69, "GP_x": 0.73, "FP": 0.72, "GP": 0.82, "GP_r": 0.78}
    flat = dict.fromkeys(experiment.ARMS, 100)
    kept = {name for name, verdict in _verdicts(useless, flat).items() if verdict == "reproduced"}
    assert not kept - {"fp-recovers"}
    assert _verdicts(useless | {"eta*": 0.8}, flat)["fp-recovers"] != "reproduced"
