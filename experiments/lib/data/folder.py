"""Images in a folder, a subfolder for each class, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.runs.errors import BadData

# One channel in eight bits. Every other mode but those below becomes red, green and blue.
_GREY = {"L", "1"}
_DEEP = ("I", "F")


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """Reads all images of the subfolders, sorted by class and name; hidden files do not count.

    The classes are the subfolders in the order of their names. If every image is grey there is one
    channel, else three: palettes are looked up, and transparency is dropped.

    Returns:
      `inputs` (n, height, width, channels) uint8 and `targets` (n,) int64.

    Raises:
      BadData: there is no Pillow; fewer than two classes; an empty class; a file that is no image,
        or has more than eight bits a channel; images of differing sizes.
    """
    try:
        import PIL.Image as image_module
    except ImportError as error:
        raise BadData("to read a folder of images install Pillow: pip install pillow") from error
    classes = _visible(p for p in folder.iterdir() if p.is_dir())
    if len(classes) < 2:
        raise BadData(f"{folder} must have a subfolder for each class, has {len(classes)}")
    images, targets, first = [], [], None
    for number, place in enumerate(classes):
        paths = _visible(place.iterdir())
        if not paths:
            raise BadData(f"class {place} has no images")
        for path in paths:
            image = _read(image_module, path)
            first = first or (path, image.size)
            if image.size != first[1]:
                raise BadData(
                    f"{path} is {image.size[0]} x {image.size[1]} pixels, {first[0]} "
                    f"{first[1][0]} x {first[1][1]}: bring all to one size"
                )
            images.append(image)
            targets.append(number)
    grey = all(image.mode == "L" for image in images)
    pixels = np.stack([np.asarray(image if grey else image.convert("RGB")) for image in images])
    return {"inputs": pixels[..., None] if grey else pixels, "targets": np.array(targets)}


def _visible(paths: Any) -> list[Path]:
    return sorted(p for p in paths if not p.name.startswith("."))


def _read(image_module: Any, path: Path) -> Any:
    """A grey or a coloured image, eight bits a channel."""
    try:
        with image_module.open(path) as image:
            if image.mode.startswith(_DEEP):
                raise BadData(f"{path} has more than eight bits a channel (mode {image.mode})")
            return image.convert("L" if image.mode in _GREY else "RGB")
    # Pillow's decoders raise what they like: a damaged PNG file is a SyntaxError.
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{path} cannot be read as an image: {error}") from error
