"""The quickstart end to end, on a stranger's network and data: what it leaves, and checkpoints."""

import base64
import re
import shutil
import textwrap

import numpy as np
import pytest
from flax import serialization

from experiments import quickstart
from experiments.__main__ import main
from experiments.lib.runs.checkpoint import Checkpoints
from experiments.lib.runs.rundir import read_json
from experiments.lib.training import curvature, minibatch
from experiments.lib.training.curvature import NUMBERS
from experiments.lib.training.load import load_checkpoint
from experiments.quickstart import checkpoints, states
from experiments.quickstart.table import RECORDS

NETWORK = textwrap.dedent("""
    import flax.linen as nn


    class Tiny(nn.Module):
        num_classes: int
        width: int = 4

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
            return nn.Dense(self.num_classes)(nn.tanh(nn.Dense(self.width)(x)))


    def wider(num_classes):
        return Tiny(num_classes, width=5)
""")


@pytest.fixture(scope="module")
def options(tmp_path_factory, quick_compilation_of_module):
    """Of a network and data of one's own, with two classes."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "quick_nets.py").write_text(NETWORK)
    draw = np.random.RandomState(0)
    targets = draw.randint(0, 2, 150)
    inputs = draw.randn(150, 3, 2, 1) + targets[:, None, None, None]
    np.savez(folder / "my.npz", inputs=inputs, targets=targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield [
            "quickstart", "--preset", "smoke", "--quiet", "--recipe.classes", "2",
            "--network", "quick_nets:Tiny", "--data", str(folder / "my.npz"),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """The folder of a finished run; not to be changed."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    assert main([*options, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def numbers(folder):
    return read_json(folder / "summary.json")["extra"]


def test_summary_has_every_number_of_both_arms(finished):
    found = numbers(finished)
    assert set(found) == {"SGD", "SAM"}
    for records in found.values():
        assert set(records) == {*RECORDS, *NUMBERS}
        for name in RECORDS:
            assert np.isfinite(records[name]).all(), name
        for name in NUMBERS:
            assert np.isfinite([*records[name].values()]).all(), name
        assert np.shape(records["top"]["value"]) == (1, 5)
        assert records["epoch"] == [2]
    assert found["SGD"]["train_loss"] != found["SAM"]["train_loss"]


def test_curvature_is_measured_along_training(finished):
    names = {path.name for path in (finished / "sam").glob("*.npz")}
    assert names == {f"curvature_100_{epoch}.npz" for epoch in (0, 1, 2)}


def test_report_shows_the_table_and_every_figure(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    shown = {base64.b64decode(d) for d in re.findall(r"data:image/png;base64,([\w+/=]+)", page)}
    names = ["overview.png", "training.png", "curvature.png", "random_direction.png"]
    assert [figure["file"] for figure in read_json(finished / "summary.json")["figures"]] == names
    assert shown == {(finished / name).read_bytes() for name in names}
    for text in ("λ₅(H)", "tr(F), Fisher information", "SAM / SGD", "ran out of epochs"):
        assert text in page
    assert "<th>verdict</th>" not in page  # it has no claims


def test_a_second_start_measures_and_trains_nothing(finished, options, monkeypatch, capsys):
    def fail(*args):
        raise AssertionError("measures or trains again")

    monkeypatch.setattr(curvature.Curvature, "_measure", fail)
    monkeypatch.setattr(Checkpoints, "save", fail)
    before = numbers(finished)
    assert main([*options, "--out", str(finished)]) == 0
    assert numbers(finished) == before
    assert "λ₁(H), largest eigenvalue" in capsys.readouterr().out


def test_a_run_killed_before_the_last_measurement_ends_the_same(copied, options):
    """Training itself is resumed by the engine, see test_minibatch.py."""
    before = numbers(copied)
    (copied / "summary.json").unlink()
    (copied / "sam" / "curvature_100_2.npz").unlink()
    assert main([*options, "--out", str(copied)]) == 0
    assert numbers(copied) == before


def test_other_options_in_the_same_folder_are_refused(finished, options, capsys):
    assert main([*options, "--rho", "0.3", "--out", str(finished)]) == 1
    assert "rho: 0.1 -> 0.3" in capsys.readouterr().err


def test_a_run_that_has_stopped_is_measured_where_it_stands(tmp_path, monkeypatch):
    """Two runs that stop at epochs 2 and 5 of 6; the states are the epochs."""

    class Fake:
        def __init__(self, *given):
            del given

        def numbers(self, params, model_state):
            return dict.fromkeys(NUMBERS, np.append(params, model_state["scale"]))

        def everything(self, params, model_state):
            return self.numbers(params, model_state) | {"random": 10 * params}

    monkeypatch.setattr(states, "Curvature", Fake)
    epochs = np.array([[0, 1, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 5]])
    trained = minibatch.Trained(
        params=epochs[:, -1:].astype(np.float32),
        model_state={"scale": np.full((2, 1), 7, np.float32)},
        records={
            "epoch": epochs,
            "state": np.stack([epochs, 0 * epochs + 7], -1).astype(np.float32),
        },
        reached=np.array([True, False]),
    )
    config = quickstart.Config(seeds=2, measure_every=3, measure_at=(1,))
    data = np.zeros((2, 1))
    for _ in range(2):  # from the files the second time
        found = states.measured(config, tmp_path, trained, data)
        assert found["measured"].tolist() == [[0, 1, 2, 2], [0, 1, 3, 5]]
        assert found["trace"].tolist() == [[[e, 7] for e in row] for row in found["measured"]]
        assert found["random"].tolist() == [[20], [50]]
        assert found["reached"].tolist() == [True, False]
        assert "state" not in found
    assert len(list(tmp_path.iterdir())) == 3 + 4


def single(folder):
    (found,) = folder.glob("checkpoint-*")
    return found


def test_a_checkpoint_of_a_run_is_measured_as_in_training(finished, options, tmp_path, capsys):
    arguments = [*options, "--out", str(tmp_path), "--label-noise", "0.2"]
    place = next(finished.glob("sgd/**/checkpoints")).parent
    arguments += ["--checkpoint", str(place)]
    assert main(arguments) == 0
    ours, theirs = numbers(single(tmp_path))["checkpoint"], numbers(finished)["SGD"]
    for name in {*RECORDS, *NUMBERS} - {"epoch"}:
        value, expected = ours[name], theirs[name]
        if name in NUMBERS:  # without the residuals, which are rounding
            value, expected = value["value"], expected["value"]
        # Sums in another order; some eigenvalues are near zero.
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    page = (single(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1
    assert "<h1>The curvature of a checkpoint</h1>" in page
    printed = capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed


@pytest.fixture(scope="module")
def foreign(finished, tmp_path_factory):
    """The SGD network in a file of another program's."""
    loaded = load_checkpoint(next(finished.glob("sgd/**/checkpoints")))
    path = tmp_path_factory.mktemp("foreign") / "variables.msgpack"
    variables = {"params": loaded.params, **loaded.model_state}
    path.write_bytes(serialization.to_bytes(variables))
    return path


def test_another_checkpoint_at_the_same_path_is_measured_anew(foreign, options, tmp_path):
    path = tmp_path / "mine" / "variables.msgpack"
    path.parent.mkdir()
    arguments = [*options, "--checkpoint", str(path), "--out", str(tmp_path)]
    found = []
    for scale in (1, 2):
        variables = serialization.msgpack_restore(foreign.read_bytes())
        variables["params"]["Dense_1"]["kernel"] = scale * variables["params"]["Dense_1"]["kernel"]
        path.write_bytes(serialization.to_bytes(variables))
        assert main(arguments) == 0
        found.append(numbers(single(tmp_path))["checkpoint"])
    assert found[0]["trace_fisher"] != found[1]["trace_fisher"]
    assert found[0]["noisy_fit"] == [0]  # nobody said that labels are wrong, so none are


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--network", "quick_nets:wider"], r"Dense_1/bias of shape \(4,\) where it has \(5,\)"),
        (["--recipe.classes", "3"], r"Dense_0/bias of shape \(2,\) where it has \(3,\)"),
        (["--network", "mlp-4"], r"BatchNorm_0/bias of shape \(6,\) where it has none"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    foreign, options, tmp_path, capsys, more, message
):
    arguments = [*options, *more, "--checkpoint", str(foreign), "--out", str(tmp_path)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "by --network (a name, or module:function)" in error
    assert "--recipe.classes, and which data by --data" in error


def mlp(sizes, names, key=0):
    """The arrays of an MLP of somebody else's."""
    draw = np.random.RandomState(key)
    return {
        name: {"kernel": draw.randn(a, b).astype(np.float32), "bias": np.zeros(b, np.float32)}
        for name, a, b in zip(names, sizes, sizes[1:], strict=False)
    }


def saved(folder, params):
    path = folder / "mine.msgpack"
    path.write_bytes(serialization.to_bytes(params))
    return str(path)


def test_every_difference_is_listed_at_once(options, tmp_path, capsys):
    path = saved(tmp_path, mlp((6, 5, 7, 2), ["Dense_0", "Dense_1", "Dense_2"]))
    arguments = [*options, "--network", "mlp-1-4", "--checkpoint", path, "--out", str(tmp_path)]
    assert main(arguments) == 1
    found = [line[2:] for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert found == [
        "Dense_0/bias of shape (5,) where it has (4,)",
        "Dense_0/kernel of shape (6, 5) where it has (6, 4)",
        "Dense_1/bias of shape (7,) where it has none",
        "Dense_1/kernel of shape (5, 7) where it has none",
        "Dense_2/bias of shape (2,) where it has none",
        "Dense_2/kernel of shape (7, 2) where it has none",
        "no head/bias where it has (2,)",
        "no head/kernel where it has (4, 2)",
    ]


def test_an_mlp_is_told_of_where_another_network_is_named(options, tmp_path, capsys):
    for names, told in ((["a0", "a1"], True), (["a0", "b0"], False)):
        params = mlp((6, 5, 2), names)
        params[names[1]]["kernel"] = params[names[1]]["kernel"][: 5 if told else 3]
        path = saved(tmp_path, params)
        assert main([*options, "--checkpoint", path, "--out", str(tmp_path)]) == 1
        assert ("which --network mlp takes" in capsys.readouterr().err) is told
    mlp_options = ["--network", "mlp", "--checkpoint", path, "--out", str(tmp_path)]
    assert main([*options, *mlp_options]) == 1
    assert "In which order its layers a0, b0 stand" in capsys.readouterr().err
    params["a0"]["scale"] = params["a0"].pop("bias")
    mlp_options[3] = saved(tmp_path, params)
    assert main([*options, *mlp_options]) == 1
    assert "mlp takes dense layers alone" in capsys.readouterr().err


def test_data_of_another_width_are_named(options, tmp_path, capsys):
    path = saved(tmp_path, mlp((9, 5, 2), ["a0", "a1"]))
    arguments = ["--network", "mlp", "--checkpoint", path, "--out", str(tmp_path)]
    assert main([*options, *arguments]) == 1
    error = capsys.readouterr().err
    assert "layer_0/kernel of shape (9, 5) where it has (6, 5)" in error
    assert "layer_1" not in error
    assert "--network mlp takes" not in error  # it was taken


class NoCurvature:
    """In place of the measurements, which take long and are tested elsewhere."""

    def __init__(self, *given):
        del given

    def everything(self, params, model_state):
        return {name: np.ones((1, 2)) for name in NUMBERS}


def of_checkpoint(options, path, network):
    return quickstart.Config(
        data=options[options.index("--data") + 1], train_size=96, checkpoint=path, network=network,
        recipe=minibatch.Recipe(network="cnn-16", activation="relu", classes=2),
    )  # fmt: skip


def test_an_mlp_has_its_width_and_depth_from_the_checkpoint(options, tmp_path, capsys, monkeypatch):
    """Of other widths than the options', with names of its own; measured as what it is."""
    monkeypatch.setattr(checkpoints, "Curvature", NoCurvature)
    params = mlp((6, 5, 7, 2), ["Dense_0", "Dense_1", "out"])
    config = checkpoints.fitted(of_checkpoint(options, saved(tmp_path, params), "mlp"))
    assert (config.network, config.recipe.network, config.recipe.hidden) == (None, "mlp", (5, 7))
    said = "an MLP of 5, 7 hidden units; not in it: its activation, relu"
    assert said in capsys.readouterr().err
    data = curvature.run_of(config.load(), 0)
    inputs, targets = data.inputs, data.targets
    hidden = np.maximum(inputs @ params["Dense_0"]["kernel"], 0)
    logits = np.maximum(hidden @ params["Dense_1"]["kernel"], 0) @ params["out"]["kernel"]
    found = checkpoints.measured(config, tmp_path)["checkpoint"]
    assert found["train_accuracy"] == pytest.approx((logits.argmax(1) == targets).mean())


@pytest.mark.parametrize(
    ("network", "becomes", "said"),
    [
        ("mlp-tanh", "mlp-2-7-tanh", "7, 7 hidden units; not in it: its activation, tanh"),
        (
            "mlp-batch",
            "mlp-2-7-batch",
            r"not in it: its activation, relu \(or say --network mlp-tanh\)",
        ),
        ("mlp-4", "mlp-4", "^$"),
        ("cnn", "cnn", "^$"),
        ("quick_nets:mlp", "quick_nets:mlp", "^$"),
    ],
)
def test_a_named_mlp_without_numbers_has_them_from_the_checkpoint(
    options, tmp_path, capsys, network, becomes, said
):
    path = saved(tmp_path, mlp((6, 7, 7, 2), ["Dense_0", "Dense_1", "head"]))
    assert checkpoints.fitted(of_checkpoint(options, path, network)).recipe.network == becomes
    assert re.search(said, capsys.readouterr().err)


def test_the_command_measures_the_network_of_the_checkpoint(options, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(quickstart.single, "main", seen.append)
    path = saved(tmp_path, mlp((6, 5, 7, 2), ["a0", "a1", "a2"]))
    arguments = ["--network", "mlp", "--checkpoint", path, "--out", str(tmp_path)]
    assert main([*options, *arguments]) == 0
    assert seen[0].recipe.hidden == (5, 7)
    assert seen[0].out.parent == tmp_path
    assert seen[0].out.name.endswith("mine.msgpack")


def test_an_mlp_that_the_checkpoint_is_not_stays_as_it_is(options, tmp_path):
    path = saved(tmp_path, mlp((6, 7, 2), ["conv", "head"]) | {"Dense_0": np.zeros(3)})
    for network in ("mlp", "mlp-tanh"):
        config = of_checkpoint(options, path, network)
        assert checkpoints.fitted(config).recipe.hidden == config.recipe.hidden
        assert checkpoints.fitted(config).recipe.network == network


def test_a_missing_checkpoint_is_one_line(options, tmp_path, capsys):
    missing = str(tmp_path / "nowhere")
    assert main([*options, "--checkpoint", missing, "--out", str(tmp_path)]) == 1
    assert f"there is no checkpoint at {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "noise", "stop"),
    [
        ({}, 0.2, 0.4),
        ({"label_noise": 0.0}, 0.0, 0.05),
        ({"label_noise": 0.1, "recipe": minibatch.Recipe(stop_loss=0.3)}, 0.1, 0.3),
        ({"checkpoint": "somewhere"}, 0.0, 0.05),
        ({"checkpoint": "somewhere", "label_noise": 0.3}, 0.3, 0.6),
    ],
)
def test_where_both_stop_follows_from_the_wrong_labels(options, noise, stop):
    config = quickstart.Config(**options)
    assert config.noise == noise
    assert config.stop_loss == pytest.approx(stop)
