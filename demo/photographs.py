"""Photographs that ship inside scikit-image, scikit-learn and matplotlib: nothing is downloaded.

Each photograph is cut in two disjoint regions: training crops come from one, held-out crops from
the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from nvlm.errors import DataError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Photograph:
    """A file of `package` and the two regions, as fractions (left, top, right, bottom)."""

    subject: str
    package: str
    file: str
    train: Box
    heldout: Box


def _columns(subject: str, package: str, file: str, at: float = 0.55, gap: float = 0.01):
    """Train on the left part, hold out the right part."""
    return Photograph(subject, package, file, (0, 0, at, 1), (at + gap, 0, 1, 1))


def _rows(subject: str, package: str, file: str, at: float = 0.55, gap: float = 0.01):
    """Train on the upper part, hold out the lower part."""
    return Photograph(subject, package, file, (0, 0, 1, at), (0, at + gap, 1, 1))


PHOTOGRAPHS = [
    Photograph("astronaut", "skimage", "astronaut.png", (0.2, 0, 0.65, 1), (0.66, 0, 1, 1)),
    _columns("bricks", "skimage", "brick.png"),
    _columns("cat", "skimage", "chelsea.png", at=0.6),
    _columns("coffee", "skimage", "coffee.png", at=0.5),
    _columns("coins", "skimage", "coins.png"),
    _columns("grass", "skimage", "grass.png"),
    _columns("gravel", "skimage", "gravel.png"),
    _columns("horse", "skimage", "horse.png"),
    _columns("galaxies", "skimage", "hubble_deep_field.jpg"),
    _columns("tissue", "skimage", "ihc.png"),
    _columns("moon", "skimage", "moon.png"),
    _columns("motorcycle", "skimage", "motorcycle_left.png"),
    _columns("page", "skimage", "page.png", at=0.6),
    _rows("retina", "skimage", "retina.jpg"),
    Photograph("rocket", "skimage", "rocket.jpg", (0, 0, 0.5, 1), (0.5, 0, 1, 1)),
    Photograph("photographer", "skimage", "camera.png", (0, 0, 0.48, 1), (0.49, 0, 1, 1)),
    Photograph("temple", "sklearn", "china.jpg", (0.1, 0.1, 0.45, 1), (0.46, 0.1, 0.8, 1)),
    Photograph("flower", "sklearn", "flower.jpg", (0.3, 0, 0.52, 1), (0.53, 0, 0.75, 1)),
    Photograph("officer", "matplotlib", "grace_hopper.jpg", (0, 0, 0.55, 1), (0.56, 0, 1, 1)),
]
SUBJECTS = [photograph.subject for photograph in PHOTOGRAPHS]


def _folder(package: str) -> Path:
    """Where `package` keeps its pictures."""
    if package == "skimage":
        import skimage

        return Path(skimage.__file__).parent / "data"
    if package == "sklearn":
        import sklearn

        return Path(sklearn.__file__).parent / "datasets" / "images"
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data"


@cache
def region(subject: str, split: str) -> Image.Image:
    """The RGB region of a photograph that belongs to `split` (`train` or `heldout`).

    Raises:
        DataError: the installed package does not ship the file.
    """
    photograph = PHOTOGRAPHS[SUBJECTS.index(subject)]
    path = _folder(photograph.package) / photograph.file
    if not path.is_file():
        raise DataError(
            f"{path}: {photograph.package} does not ship this photograph; install the version "
            "named in constraints.txt"
        )
    with Image.open(path) as opened:
        image = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    left, top, right, bottom = photograph.train if split == "train" else photograph.heldout
    width, height = image.size
    box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    return image.crop(box)


def random_crop(
    rng: np.random.Generator, subject: str, split: str, width: int, height: int
) -> Image.Image:
    """A crop of the region with about the aspect of `width` x `height`, resized to that size."""
    whole = region(subject, split)
    largest = min(whole.width / width, whole.height / height)
    scale = largest * rng.uniform(0.65, 1.0)
    crop_width, crop_height = int(scale * width), int(scale * height)
    left = int(rng.integers(whole.width - crop_width + 1))
    top = int(rng.integers(whole.height - crop_height + 1))
    crop = whole.crop((left, top, left + crop_width, top + crop_height))
    return crop.resize((width, height), Image.Resampling.BICUBIC)
