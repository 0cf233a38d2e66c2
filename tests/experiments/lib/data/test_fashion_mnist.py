"""Fashion-MNIST out of IDX files: the same images by name, at once or not at all."""

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.lib.data import fashion_mnist, storage
from experiments.lib.data.images import DataConfig, load_data
from experiments.lib.runs.errors import BadData

SIZES = {"train": 20, "t10k": 10}


def write_idx(path, array):
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes())


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A folder of IDX files of thirty images, and the reader expecting so many."""
    monkeypatch.setattr(fashion_mnist, "SIZES", SIZES)
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for part, size in SIZES.items():
        images = rng.randint(0, 256, (size, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(size) % 10).astype(np.uint8))
    return folder


def test_the_command_writes_what_every_experiment_loads(source, tmp_path, capsys):
    command = ["data", "fashion_mnist", "--from", str(source), "--data_dir", str(tmp_path / "data")]
    assert main(command) == 0
    assert "20 + 10 images of files that are not Debian's, is now in" in capsys.readouterr().out
    data = load_data(DataConfig(name="fashion_mnist", data_dir=str(tmp_path / "data")))
    assert (data.num_classes, data.input_shape) == (10, (28, 28, 1))
    for split, part in ((data.train, "train"), (data.test, "t10k")):
        pixels, labels = split.pixels_and_labels(np.arange(SIZES[part]))
        # Sixteen bytes of header.
        stored = (source / f"{part}-images-idx3-ubyte").read_bytes()[16:]
        assert pixels.tobytes() == stored
        np.testing.assert_array_equal(labels, np.arange(SIZES[part]) % 10)
    info = storage.open_builder("fashion_mnist", tmp_path / "data").info
    assert info.features["label"].int2str(9) == "Ankle boot"
    assert info.metadata["sha256"].keys() == fashion_mnist.SHA256.keys()
    # Called again with the same files it leaves the set; with others it says what to do.
    assert main(command) == 0
    assert "was already in" in capsys.readouterr().out
    write_idx(source / "t10k-labels-idx1-ubyte", np.zeros(10, np.uint8))
    assert main(command) == 1
    assert "made of other files; remove that folder" in capsys.readouterr().err


def test_absent_files_say_in_one_line_how_to_fetch_them(tmp_path, capsys):
    assert main(["data", "fashion_mnist", "--from", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.endswith(f"run: {fashion_mnist.FETCH}\n")
    with pytest.raises(storage.DatasetNotPrepared, match="experiments data fashion_mnist --data_d"):
        load_data(DataConfig(name="fashion_mnist", data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3", np.zeros((19, 28, 28)), r"shape \(19, 28, 28\), not \(20, 28, 28\)"),
        ("t10k-images-idx3", np.zeros((10, 27, 28)), r"shape \(10, 27, 28\), not \(10, 28, 28\)"),
        ("train-labels-idx1", np.zeros(21), r"shape \(21,\), not \(20,\)"),
        ("t10k-labels-idx1", np.full(10, 10), "has label 10, past 9"),
    ],
)
def test_other_counts_shapes_and_labels_are_refused(source, tmp_path, name, array, message):
    write_idx(source / f"{name}-ubyte", array.astype(np.uint8))
    with pytest.raises(BadData, match=message):
        fashion_mnist.prepare(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_preparation_killed_in_the_middle_is_none(source, tmp_path, monkeypatch):
    count, real = [0], fashion_mnist.Image.fromarray

    def dying(array):
        count[0] += 1
        if count[0] == 25:
            raise KeyboardInterrupt
        return real(array)

    data = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist.Image, "fromarray", dying)
        # A killed process clears nothing up.
        patch.setattr(storage.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            fashion_mnist.prepare(source, data)
    assert list(data.glob(".fashion_mnist-*.tmp"))
    with pytest.raises(storage.DatasetNotPrepared):
        storage.open_builder("fashion_mnist", data)
    assert "is now in" in fashion_mnist.prepare(source, data)
    assert not list(data.glob(".fashion_mnist-*.tmp"))
    assert storage.open_builder("fashion_mnist", data).info.splits["train"].num_examples == 20
