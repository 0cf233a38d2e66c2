"""Preparing and finding data sets: at once or not at all, and a line that says what to run."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.lib.data import storage
from experiments.lib.data.images import DataConfig, load_data
from tests.experiments.bucket import buckets


class Coloured(tfds.core.GeneratorBasedBuilder):
    """A colour data set with a `validation` split in place of `test`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            pixels = np.full((4, 4, 3), 40 * i, np.uint8)
            yield i, {"image": Image.fromarray(pixels), "label": i % 3}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("coloured")
    tfds.disable_progress_bar()
    Coloured(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def test_any_prepared_image_set_loads_by_name(coloured):
    data = load_data(DataConfig(name="coloured", data_dir=str(coloured)))
    assert (data.input_shape, data.num_classes) == ((4, 4, 3), 3)
    arrays = data.train.arrays()
    order = np.argsort(arrays.inputs[:, 0, 0, 0])
    np.testing.assert_array_equal(arrays.targets[order], [0, 1, 2, 0, 1, 2])
    pixels = 40.0 * np.arange(6)
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(arrays.inputs[order][:, 1, 2, 2], expected, rtol=1e-6)  # float32
    assert len(data.test) == 3


def test_the_newest_version_is_taken_unless_one_is_named(coloured, tmp_path):
    shutil.copytree(coloured / "coloured", tmp_path / "coloured")
    newer = tmp_path / "coloured" / "1.10.0"
    shutil.copytree(tmp_path / "coloured" / "1.0.0", newer)
    info = json.loads((newer / "dataset_info.json").read_text())
    (newer / "dataset_info.json").write_text(json.dumps(info | {"version": "1.10.0"}))
    assert str(storage.open_builder("coloured", tmp_path).version) == "1.10.0"
    assert str(storage.open_builder("coloured:1.0.0", tmp_path).version) == "1.0.0"


def test_an_absent_set_says_in_one_line_what_to_run(tmp_path):
    with pytest.raises(storage.DatasetNotPrepared) as caught:
        load_data(DataConfig(name="cifar10", data_dir=str(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message
    assert f"data set 'cifar10' is not prepared in '{tmp_path}'" in message
    command = message.partition('python -c "')[2].rstrip('"')
    compile(command, "command", "exec")  # it is Python
    assert f"builder('cifar10', data_dir='{tmp_path}', file_format='array_record')" in command


def test_tfrecord_files_are_refused_with_the_way_out(coloured, tmp_path):
    shutil.copytree(coloured / "coloured", tmp_path / "coloured")
    path = tmp_path / "coloured" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(storage.DatasetNotPrepared, match="prepared as tfrecord, which needs Tens"):
        storage.open_builder("coloured", tmp_path)


def test_the_data_directory_comes_from_argument_environment_or_default(monkeypatch):
    monkeypatch.setenv(storage.DATA_DIR_VARIABLE, "/elsewhere")
    assert storage.data_directory("/here") == Path("/here")
    assert storage.data_directory() == Path("/elsewhere")
    monkeypatch.delenv(storage.DATA_DIR_VARIABLE)
    assert storage.data_directory() == Path("data")


def test_a_set_in_a_bucket_is_copied_once_and_is_the_same(coloured, monkeypatch, tmp_path):
    monkeypatch.setenv(storage.CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    shutil.copytree(coloured / "coloured", tmp_path / "mine" / "data" / "coloured")
    with buckets(tmp_path):
        # A preparation that is under way in the bucket is none.
        (tmp_path / "mine" / "data" / "coloured" / "2.0.0").mkdir()
        in_bucket = load_data(DataConfig(name="coloured", data_dir="gs://mine/data"))
        local = load_data(DataConfig(name="coloured", data_dir=str(coloured)))
        for split in ("train", "test"):
            pair = (getattr(d, split).arrays() for d in (in_bucket, local))
            for ours, theirs in zip(*pair, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        # Opened again, nothing but the list of versions is read there.
        for path in (tmp_path / "mine" / "data" / "coloured" / "1.0.0").glob("*array_record*"):
            path.unlink()
        again = load_data(DataConfig(name="coloured", data_dir="gs://mine/data"))
        assert len(again.train) == 6
        with pytest.raises(storage.DatasetNotPrepared, match="not prepared in 'gs://mine/data'"):
            load_data(DataConfig(name="cifar10", data_dir="gs://mine/data"))


def test_a_killed_preparation_leaves_nothing_that_counts(monkeypatch, tmp_path):
    def half(directory):
        (directory / "digits" / "1.0.0").mkdir(parents=True)
        raise KeyboardInterrupt

    # What a killed process leaves: a temporary folder, and a lock file nobody holds.
    left_behind = tmp_path / ".digits-killed.tmp"
    (left_behind / "digits" / "1.0.0").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_build_digits", half)
        with pytest.raises(KeyboardInterrupt):
            storage.open_builder("digits", tmp_path)
    assert not (tmp_path / "digits").exists() or not list((tmp_path / "digits").iterdir())
    assert not left_behind.exists()
    assert storage.open_builder("digits", tmp_path).info.splits["train"].num_examples == 1500


def test_losing_the_race_without_a_lock_takes_the_winners_files(monkeypatch, data_dir, tmp_path):
    def slow(directory):
        for place in (directory, tmp_path):  # another process finishes first
            shutil.copytree(data_dir / "digits", place / "digits")

    monkeypatch.setattr(storage, "_build_digits", slow)
    assert storage.open_builder("digits", tmp_path).info.splits["test"].num_examples == 297
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_many_processes_may_ask_for_the_digits_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        sizes = pool.map(_train_size, [tmp_path] * 4)
    assert sizes == [1500] * 4
    assert not list(tmp_path.glob(".digits-*"))


def _train_size(directory: Path) -> int:
    return storage.open_builder("digits", directory).info.splits["train"].num_examples
