"""A folder of images: a class for each subfolder, and what is refused by the file's name."""

import numpy as np
import pytest
from PIL import Image

from experiments.lib.data.own import is_own, load_own
from experiments.lib.runs.errors import BadData


@pytest.fixture
def photos(tmp_path):
    for name, value in (("cats/b.png", 1), ("cats/a.png", 2), ("dogs/a.png", 3)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 2), value).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "cats" / ".hidden").write_text("")
    return tmp_path / "photos"


def test_a_folder_of_images_has_a_class_for_each_subfolder(photos):
    assert is_own(str(photos))
    examples = load_own(photos, test_fraction=0.1, seed=0)
    assert examples.num_classes == 2
    assert (examples.inputs.shape, examples.test_inputs.shape) == ((2, 2, 4, 1), (1, 2, 4, 1))
    pixels = np.concatenate([examples.inputs, examples.test_inputs])[:, 0, 0, 0] * 255
    targets = np.concatenate([examples.targets, examples.test_targets])
    assert set(zip(pixels.round(), targets, strict=True)) == {(1, 0), (2, 0), (3, 1)}
    # One coloured image, and all are: grey is the same in every channel.
    Image.new("RGB", (4, 2), (5, 6, 7)).save(photos / "dogs" / "b.png")
    coloured = load_own(photos, test_fraction=0.3, seed=0)
    assert coloured.inputs.shape == (3, 2, 4, 3)
    rows = np.concatenate([coloured.inputs, coloured.test_inputs])[:, 0, 0] * 255
    assert {tuple(r) for r in rows.round()} == {(1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 6, 7)}


def test_folders_that_do_not_fit_are_refused_with_the_files_name(photos, tmp_path):
    def refused(message, path=photos):
        with pytest.raises(BadData, match=message):
            load_own(path)

    refused("subfolder for each class, has 1", tmp_path)
    for name, image, message in (
        ("wide.png", Image.new("L", (5, 2)), "wide.png is 5 x 2 pixels, .*a.png 4 x 2"),
        ("deep.png", Image.new("I;16", (4, 2)), "deep.png has more than eight bits"),
    ):
        image.save(photos / "dogs" / name)
        refused(message)
        (photos / "dogs" / name).unlink()
    (photos / "dogs" / "notes.txt").write_text("no image")
    refused("notes.txt cannot be read as an image")
    content = (photos / "dogs" / "a.png").read_bytes()
    (photos / "dogs" / "notes.txt").write_bytes(content[:40])
    refused("notes.txt cannot be read as an image")
    (photos / "dogs" / "notes.txt").unlink()
    (photos / "empty").mkdir()
    refused("empty has no images")
