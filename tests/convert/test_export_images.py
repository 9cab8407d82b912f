"""Image files in the hands of an export: the tiles that evaluation here makes of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import nvlm.convert
from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import cut_tiles

CODE = Path(nvlm.convert.__file__).with_name("hf_files") / "image_tiling.py"


@pytest.fixture(scope="module")
def image_tiling():
    """The file as an export holds it: on its own."""
    spec = importlib.util.spec_from_file_location("image_tiling", CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *[("rotated", kind) for kind in ("png", "jpg", "tif", "webp")],
        *[("transparent", kind) for kind in ("png", "tif", "webp")],
        *[("16 bit", kind) for kind in ("png", "tif")],
        *[("gray", kind) for kind in ("png", "jpg")],
        ("palette", "png"),
    ],
)
def test_files_become_the_tiles_of_evaluation(image_tiling, tmp_path, content: str, kind: str):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 330, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if content == "rotated":
        exif[ExifTags.Base.Orientation] = 6
    elif content == "16 bit":
        image = Image.fromarray(np.arange(66_000, dtype=np.uint16)[:60_000].reshape(200, 300))
    else:
        image = image.convert({"transparent": "RGBA", "palette": "P", "gray": "L"}[content])
    file = tmp_path / f"image.{kind}"
    image.save(file, exif=exif)
    tiles = cut_tiles(decode_image(file.read_bytes()), 6, True, 112)
    assert len(tiles) > 2
    pixel_values = image_tiling.load_image(str(file), 112)
    mean = torch.tensor(image_tiling.IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(image_tiling.IMAGENET_STD).view(3, 1, 1)
    assert torch.equal(pixel_values, (torch.from_numpy(tiles).float() / 255 - mean) / std)
