"""Files: sound, or set aside and absent, or one line that names them; never something else."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.lib.runs import rundir
from experiments.lib.runs.errors import Damaged, DiskFull, NotWritable, refusals
from experiments.lib.runs.kept import each_seed, kept_arrays, load_arrays, save_arrays
from experiments.lib.runs.shares import shared
from experiments.registry import Options

BROKEN = ["", '{"step": 3, "na', "[1]", "3", '{"name": "x"}', '{"step": "3"}', "\0\0\0"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_json_file_is_whole_or_set_aside_or_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(Damaged, match=r"a\.json is damaged \(.*: delete it") as caught:
        rundir.read_json(path, step=int)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)
    assert path.exists()
    with pytest.warns(UserWarning, match=r"a\.json is damaged .*/damaged/a\.json and it is redone"):
        assert rundir.read_json(path, step=int, then="it is redone") is None
    assert (tmp_path / "damaged" / "a.json").read_text() == text
    assert rundir.read_json(path, step=int) is None  # absent: nothing to say


def test_the_newest_damage_takes_the_place_of_older_one(tmp_path):
    for text in ("[1]", "[2]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.warns(UserWarning, match="is damaged"):
            rundir.read_json(tmp_path / "a.json", then="left")
    assert (tmp_path / "damaged" / "a.json").read_text() == "[2]"


def test_no_changed_bit_and_no_cut_of_an_npz_file_gives_other_numbers(tmp_path):
    path, made = tmp_path / "a.npz", {"a": np.arange(3.0), "b": np.eye(2, dtype=np.float32)}
    save_arrays(path, **made)
    data = path.read_bytes()
    changed = [data[:i] + bytes([data[i] ^ 16]) + data[i + 1 :] for i in range(0, len(data), 3)]
    seen = 0
    for bad in [*changed, *(data[:size] for size in range(0, len(data), 9))]:
        path.write_bytes(bad)
        try:
            found = load_arrays(path)
        except ValueError:
            seen += 1
            continue
        for name in made.keys() & found.keys():
            np.testing.assert_array_equal(found[name], made[name], strict=True)
    assert seen > len(changed) / 2


def test_damaged_results_are_made_again(tmp_path):
    config = Options(out=tmp_path, seeds=2, first_seed=0, quiet=True)
    ran = []

    def run_seed(seed, folder):
        ran.append(seed)
        return kept_arrays(folder / "a.npz", lambda: {"x": [seed]})

    whole = shared(config, each_seed(config, run_seed))
    (tmp_path / "seed_1" / "result.json").write_text('{"x"')
    (tmp_path / "seed_1" / "a.npz").write_bytes(b"PK")
    with pytest.warns(UserWarning, match=r"(run|made) again") as caught:
        assert shared(config, each_seed(config, run_seed)) == whole
    assert (len(caught), ran) == (2, [0, 1, 1])


@pytest.mark.parametrize("text", ["", '{"config": {}}', '{"config": {}, "identity": 3}'])
def test_a_damaged_configuration_is_no_leave_to_go_on(tmp_path, text):
    """Nothing else tells what the folder holds, so it is neither continued nor overwritten."""
    rundir.check_config(tmp_path, {"a": 1}, {"a": 1})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Damaged, match=r"config\.json is damaged"):
        rundir.check_config(tmp_path, {"a": 1}, {"a": 1})
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("text", ["", "[]", '{"starts": 1}'])
def test_a_damaged_environment_begins_anew(tmp_path, text):
    (tmp_path / "env.json").write_text(text)
    with pytest.warns(UserWarning, match="the starts are counted anew"):
        rundir.record_environment(tmp_path)
    assert len(json.loads((tmp_path / "env.json").read_text())["starts"]) == 1


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        said = r"/file.*: (File exists|Not a directory); .* --out"
        with pytest.raises(NotWritable, match=said), refusals(tmp_path), rundir.locked(folder):
            pass


def test_other_errors_of_the_system_pass():
    with pytest.raises(FileNotFoundError), refusals("runs"):
        Path("/nowhere/at/all").read_text()


def test_a_failed_write_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_bytes", full)
        said = r"a\.json: No space left on device; make room"
        with pytest.raises(DiskFull, match=said), refusals(tmp_path):
            rundir.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []
