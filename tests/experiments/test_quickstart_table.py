"""The quickstart's table and figures, on made-up numbers."""

import numpy as np
import pytest

from experiments import quickstart
from experiments.lib.verdicts.figures import figure
from experiments.quickstart import pictures, table
from tests.experiments.legible import drawn, touching_texts

CONFIG = quickstart.Config()
LABELS = ["", "epochs", "training loss", "training accuracy", "wrong labels learned", "test loss",
          "test accuracy", "λ₁(H), largest eigenvalue", "λ₂(H)", "λ₃(H)", "smallest but 1",
          "smallest eigenvalue of H", "λ₁(K), gradient covariance", "tr(H)", "tr(K)",
          "tr(F), Fisher information"]  # fmt: skip


def arm(scale, last, *, seeds=1, reached=True):
    """Records of `seeds` runs that stop at epoch `last` of 60, of curvature `scale`."""
    factors = 1 + np.arange(seeds)[:, None] / 10  # of the seeds
    epochs = np.minimum(np.arange(61), last) + np.zeros((seeds, 1), int)
    measured = np.array([0, 1, 2, 4, 8, 16, last]) + np.zeros((seeds, 1), int)
    sharpness = factors * scale * (1 + 5 / (1 + measured))

    def numbers(of, errors):
        return np.stack([sharpness * of, np.abs(errors * sharpness)], -1)

    grid = np.linspace(-2, 1.1 * scale, 200)
    density = np.exp(-(grid**2)) + 1e-7
    line = np.stack([np.linspace(-1, 1, 5), scale * np.linspace(-1, 1, 5) ** 2])
    return {
        "epoch": epochs,
        "train_loss": 3 * np.exp(-epochs / 20) + 0.3,
        "train_accuracy": 0.9 + 0 * epochs,
        "noisy_fit": epochs / 120,
        "test_loss": 0.4 + 0 * epochs,
        "test_accuracy": 0.9 + 0 * epochs,
        "measured": measured,
        "top": np.stack([numbers(of, 1e-4) for of in (1.0, 0.8, 0.7)], 2),
        "bottom": np.stack([numbers(of, 1e-4) for of in (-0.1, -0.2)], 2),
        "trace": numbers(20, 1),
        "lambda_K": numbers(1, 1e-4),
        "trace_K": numbers(10, 0.5),
        "trace_fisher": numbers(19, 1),
        "density": np.tile([grid, density, 0 * density, np.inf + density], (seeds, 1, 1)),
        "top_eigenvector": np.tile(line, (seeds, 1, 1)),
        "random": np.tile(line, (seeds, 1, 1)),
        "reached": np.full(seeds, reached),
    }


def rows(runs, config=CONFIG):
    return {row[0]: row[1:] for row in table.table(runs, config).rows}


def test_one_seed_is_told_with_its_own_errors_and_compared():
    runs = {"SGD": arm(30.0, 27), "SAM": arm(10.0, 45)}
    shown = table.table(runs, CONFIG)
    assert list(shown.columns) == ["", "SGD", "SAM", "SAM / SGD"]
    assert ["", *(row[0] for row in shown.rows)] == LABELS
    found = rows(runs)
    sgd, sam = (scale * (1 + 5 / (1 + last)) for scale, last in ((30, 27), (10, 45)))
    assert found["epochs"] == ("27", "45", "")
    assert found["test accuracy"] == ("0.9", "0.9", "")
    assert found["λ₁(H), largest eigenvalue"] == (
        f"{sgd:.4g} (r {1e-4 * sgd:.1g})", f"{sam:.4g} (r {1e-4 * sam:.1g})", f"{sam / sgd:.2f}"
    )  # fmt: skip
    assert found["tr(K)"][0] == f"{10 * sgd:.4g} ± {0.5 * sgd:.2g}"
    # The last is the smallest; eigenvalues of either sign are not compared.
    assert found["smallest eigenvalue of H"][0].startswith(f"{-0.2 * sgd:.4g} (r")
    assert found["smallest eigenvalue of H"][2] == ""
    assert "256 training examples" in shown.caption
    assert "ran out" not in shown.caption
    assert "their wrong labels included" in shown.caption


def test_several_seeds_are_averaged_with_the_error_of_the_mean():
    value = rows({"SGD": arm(10.0, 4, seeds=3)})["λ₁(H), largest eigenvalue"]
    # 20 times 1, 1.1 and 1.2.
    assert value == (f"22 ± {2 / 3**0.5:.2g}",)


def test_the_summary_has_the_numbers_of_the_table():
    found = table.ends({"SGD": arm(10.0, 4, seeds=3)}, CONFIG)["SGD"]
    np.testing.assert_allclose(found["top"]["value"][:, 0], [20, 22, 24])
    np.testing.assert_allclose(found["top"]["residual_norms"][:, 0], [2e-3, 2.2e-3, 2.4e-3])
    np.testing.assert_allclose(found["trace_K"]["standard_error"], [10, 11, 12])
    assert found["epoch"].tolist() == [4, 4, 4]
    assert "density" not in found


def test_without_wrong_labels_there_is_no_row_about_them():
    shown = table.table({"SGD": arm(10.0, 4)}, quickstart.Config(label_noise=0.0))
    assert "wrong labels" not in str(shown)


def test_a_comparison_at_different_losses_says_so():
    runs = {"SGD": arm(30.0, 27), "SAM": arm(10.0, 60, reached=False)}
    caption = table.table(runs, CONFIG).caption
    assert "SAM ran out of epochs before the training loss 0.4" in caption
    assert "SGD" not in caption


FIGURES = {
    "overview": (pictures.overview, {"columns": 3}),
    "training": (pictures.training, {"columns": 3}),
    "curvature": (pictures.curvature, {"rows": 2, "columns": 3}),
    "random_direction": (pictures.random_direction, {}),
    "state": (pictures.state, {"columns": 3}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name, tmp_path):
    draw, options = FIGURES[name]
    runs = {"SGD": arm(30.0, 27, seeds=3), "SAM": arm(10.0, 45, seeds=3)}
    with drawn() as found, figure(tmp_path / "a.png", **options) as axes:
        draw(axes, runs, CONFIG)
    (drawing,) = found
    assert touching_texts(drawing) == []
    for panel in drawing.axes:
        assert panel.get_xlabel()
        assert panel.get_ylabel()
        labels = [text.get_text() for text in panel.get_legend().get_texts()]
        assert len(labels) == len(set(labels)) == 2  # one for all seeds of an arm


def test_the_lines_are_those_of_the_records(tmp_path):
    runs = {"SGD": arm(30.0, 27, seeds=2), "SAM": arm(10.0, 45, seeds=2)}
    with drawn() as found, figure(tmp_path / "a.png", columns=3) as axes:
        pictures.overview(axes, runs, CONFIG)
    lines = found[0].axes[0].lines
    np.testing.assert_array_equal(lines[3].get_xdata(), runs["SAM"]["measured"][1])
    np.testing.assert_array_equal(lines[3].get_ydata(), runs["SAM"]["top"][1, :, 0, 0])
    assert lines[4].get_ydata()[0] == 2 / CONFIG.rate
