"""The claims fail where no penalty helps."""

import numpy as np

from experiments import fisher_explosion as experiment

ARMS = ("eta*", "baseline", "GP_x", "GP", "FP", "GP_r", "lower", "middle", "higher", "FP early",
        "FP late")  # fmt: skip
TRACE = (40, 130, 70, 24, 15, 12, 110, 80, 39, 15, 130)
FINAL = (0.78, 0.7, 0.76, 0.8, 0.83, 0.83, 0.72, 0.74, 0.79, 0.8, 0.71)


def _runs(final, trace, norms=1.0):
    epochs = np.tile(np.arange(0, 30, 10), (3, 1))
    noise = np.array([[-0.001], [0.0], [0.001]])
    runs = {}
    for arm, accuracy, largest in zip(ARMS, final, trace, strict=True):
        traces = largest * (1 + noise) + 0.0 * epochs
        runs[arm] = {
            "epoch": epochs,
            "test_accuracy": accuracy + noise + 0 * epochs,
            "half_accuracy": accuracy + noise + 0 * epochs,
            "validation_accuracy": 0.5 + 0 * epochs,
            "trace_fisher": traces,
            "drawn_norms": norms * traces,
            "given_norms": 3 * traces,
        }
    return runs


def _verdicts(*numbers, **options):
    judged = experiment.lab.judged(_runs(*numbers, **options), experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(FINAL, TRACE).values()) == {"reproduced"}
    useless = (0.71, 0.7, 0.74, 0.705, 0.73, 0.7, 0.72, 0.73, 0.74, 0.705, 0.72)
    assert "reproduced" not in _verdicts(useless, (100,) * len(ARMS), norms=1.1).values()
    only_late = _verdicts((*FINAL[:-2], 0.71, 0.82), TRACE)
    failed = {name for name, verdict in only_late.items() if verdict == "not reproduced"}
    assert failed == {"early-penalty-suffices", "late-penalty-does-not"}


def test_the_null_of_a_prediction_has_the_traces_of_other_rates():
    for shift, expected in ((0, -1.0), (1, 0.0)):
        found = experiment.prediction(experiment.final, shift)(_runs(FINAL, TRACE), None)
        np.testing.assert_allclose(found, expected, atol=1e-12)
