"""The quickstart end to end, in its smallest form: what it leaves, resuming, given checkpoints."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from flax import serialization

from experiments import quickstart
from experiments.__main__ import main
from experiments.lib.training.load import load_checkpoint
from experiments.quickstart import work

NETWORK = ["--model", "mlp", "--model.width", "8", "--model.depth", "1"]
OPTIONS = ["--preset", "smoke", "--quiet", *NETWORK]
QUANTITIES = {
    "steps", "train_loss", "train_accuracy", "train_memorized", "test_loss", "test_accuracy",
    *(f"hessian_top_{i}" for i in range(1, 6)), "hessian_bottom_1", "hessian_bottom_2",
    "hessian_trace", "covariance_top", "covariance_trace", "fisher_trace",
}  # fmt: skip


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(folder):
    return {row["key"]: row for row in read(folder / "summary.json")["table"]}


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory, quick_compilation_of_module):
    """The folder of a finished run; not to be changed."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    assert main(["quickstart", *OPTIONS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("trains again")

    monkeypatch.setattr(work, "train", train)


def test_summary_has_every_quantity_of_both_arms(finished):
    table = rows(finished)
    assert set(table) == QUANTITIES
    for key, row in table.items():
        assert set(row["values"]) == {"sgd", "sam"}
        for value in row["values"].values():
            assert np.isfinite(value["value"]), key
    for key in ("hessian_top_1", "hessian_bottom_2", "covariance_top"):
        assert table[key]["values"]["sgd"]["kind"] == "residual"
        assert table[key]["values"]["sgd"]["error"] >= 0
    for key in ("hessian_trace", "covariance_trace", "fisher_trace"):
        assert table[key]["values"]["sgd"]["kind"] == "standard error"
        assert table[key]["values"]["sgd"]["error"] > 0
        assert table[key]["ratio"] > 0
    tops = [table[f"hessian_top_{i}"]["values"]["sam"]["value"] for i in range(1, 6)]
    assert tops == sorted(tops, reverse=True)
    assert table["hessian_bottom_1"]["values"]["sgd"]["value"] <= tops[-1]


def test_summary_says_how_the_numbers_came_about(finished):
    summary = read(finished / "summary.json")
    assert summary["config"]["model"]["name"] == "mlp"
    assert [(run["arm"], run["seed"]) for run in summary["runs"]] == [("sgd", 0), ("sam", 0)]
    assert all(run["examples"] == 32 for run in summary["runs"])
    assert all(run["evaluation"]["step"] == run["step"] == 6 for run in summary["runs"])
    assert "SGD and SAM reach test accuracies" in summary["sentence"]
    # Six updates do not reach the loss.
    assert "SAM ran out of updates" in summary["sentence"]


def test_curvature_is_measured_along_training(finished):
    lines = (finished / "sam-0" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if '"event": "curvature"' in line]
    assert [row["step"] for row in measured] == [0, 4]
    for row in measured:
        assert len(row["hessian"]["top"]["residual_norms"]) == 5


def test_report_shows_the_table_and_every_figure(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    shown = {base64.b64decode(d) for d in re.findall(r"data:image/png;base64,([\w+/=]+)", page)}
    figures = read(finished / "summary.json")["figures"]
    assert len(figures) == 6
    assert shown == {(finished / name).read_bytes() for name in figures}
    for row in rows(finished).values():
        assert row["label"] in page
    assert "Versions and machine" in page
    assert "Command: python -m experiments" in page


def test_both_arms_leave_checkpoints_that_load(finished):
    for arm in ("sgd", "sam"):
        loaded = load_checkpoint(finished / f"{arm}-0")
        assert loaded.step == 6
        radius = loaded.config.train.optimizer.sam_rho
        assert radius == (None if arm == "sgd" else 0.1)


def test_a_second_run_shows_the_table_and_does_nothing(finished, monkeypatch, capsys):
    monkeypatch.setattr(work, "compare", None)
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "config.json"}
    assert main(["quickstart", *OPTIONS, "--out", str(finished)]) == 0
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "config.json"}
    assert after == before
    printed = capsys.readouterr().out
    for label in ("λ₁(H)", "tr(F)", "test accuracy", "SAM / SGD"):
        assert label in printed


@pytest.mark.usefixtures("no_training")
def test_a_lost_figure_is_drawn_again_without_training(copied):
    summary = read(copied / "summary.json")
    lost = copied / summary["figures"][0]
    before = lost.read_bytes()
    lost.unlink()
    assert main(["quickstart", *OPTIONS, "--out", str(copied)]) == 0
    assert lost.read_bytes() == before
    assert read(copied / "summary.json") == summary


def test_a_run_killed_before_the_last_measurement_ends_the_same(copied):
    """Training itself is resumed by the harness, see test_train.py."""
    summary = read(copied / "summary.json")
    measured = read(copied / "sam-0" / "measured.json")
    (copied / "summary.json").unlink()
    (copied / "sam-0" / "measured.json").unlink()
    assert main(["quickstart", *OPTIONS, "--out", str(copied)]) == 0
    assert read(copied / "sam-0" / "measured.json") == measured
    assert read(copied / "summary.json") == summary


def test_other_options_in_the_same_folder_are_refused(finished, capsys):
    assert main(["quickstart", *OPTIONS, "--rho", "0.3", "--out", str(finished)]) == 1
    assert "rho: 0.1 -> 0.3" in capsys.readouterr().err


def single(folder):
    (found,) = folder.glob("checkpoint-*")
    return found


def test_a_checkpoint_of_the_harness_is_measured_as_in_training(finished, tmp_path, capsys):
    """It knows its own network and data: no option names them."""
    arguments = ["quickstart", "--preset", "smoke", "--quiet", "--out", str(tmp_path)]
    arguments += ["--checkpoint", str(finished / "sgd-0"), "--step", "6"]
    assert main(arguments) == 0
    table, original = rows(single(tmp_path)), rows(finished)
    assert set(table) == QUANTITIES
    for key, row in table.items():
        value, expected = row["values"]["checkpoint"], original[key]["values"]["sgd"]
        assert value["value"] == pytest.approx(expected["value"], rel=1e-6), key
    page = (single(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 2
    printed = capsys.readouterr().out
    stamp = (single(tmp_path) / "report.html").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (single(tmp_path) / "report.html").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == printed


@pytest.fixture
def foreign(finished, tmp_path):
    """The SGD network in a file of another program's: parameters alone."""
    params = load_checkpoint(finished / "sgd-0").params
    path = tmp_path / "params.msgpack"
    path.write_bytes(serialization.to_bytes(params))
    return path


def test_a_foreign_checkpoint_is_measured_with_the_named_network(foreign, tmp_path):
    arguments = [*OPTIONS, "--checkpoint", str(foreign), "--out", str(tmp_path)]
    assert main(["quickstart", *arguments]) == 0
    table = rows(single(tmp_path))
    # Nobody said that labels are wrong, so none are.
    assert set(table) == QUANTITIES - {"train_memorized"}
    assert read(single(tmp_path) / "summary.json")["config"]["run"]["data"]["label_noise"] == 0


def test_a_checkpoint_of_another_network_is_refused_with_the_difference(foreign, tmp_path, capsys):
    arguments = [*OPTIONS, "--model.width", "9", "--checkpoint", str(foreign)]
    assert main(["quickstart", *arguments, "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "does not fit the network 'mlp'" in message
    assert re.search(r"shape \(8,\) where it has \(9,\)", message)
    assert "--model.width" in message


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    missing = str(tmp_path / "nowhere")
    assert main(["quickstart", *OPTIONS, "--checkpoint", missing, "--out", str(tmp_path)]) == 1
    assert f"there is no checkpoint at {missing}" in capsys.readouterr().err


def test_the_arms_differ_in_the_radius_alone():
    config = quickstart.Config(rho=0.2)
    sgd, sam = (work.to_dict(config.run(arm, 3)) for arm in ("sgd", "sam"))
    assert sgd["train"]["optimizer"].pop("sam_rho") is None
    assert sam["train"]["optimizer"].pop("sam_rho") == 0.2
    assert sgd == sam
    assert sgd["train"]["seed"] == sgd["data"]["data_seed"] == 3


@pytest.mark.parametrize(
    ("options", "noise", "stop"),
    [
        ({}, 0.2, 0.4),
        ({"label_noise": 0.0}, 0.0, 0.05),
        ({"label_noise": 0.1, "stop_train_loss": 0.3}, 0.1, 0.3),
        ({"checkpoint": "somewhere"}, 0.0, 0.05),
    ],
)
def test_where_both_stop_follows_from_the_wrong_labels(options, noise, stop):
    run = quickstart.Config(**options).run("sgd", 0)
    assert run.data.label_noise == noise
    assert run.train.stop_train_loss == pytest.approx(stop)


def test_the_edge_of_stability_is_marked_for_plain_gradient_descent_only():
    config = quickstart.Config()
    assert work.marks(config)["stable"] == pytest.approx(40)
    momentum = work.dataclasses.replace(config.train.optimizer, momentum=0.9)
    train = work.dataclasses.replace(config.train, optimizer=momentum)
    assert work.marks(work.dataclasses.replace(config, train=train))["stable"] is None
