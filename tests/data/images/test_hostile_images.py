"""Every hostile image is read, repaired or skipped, as its rule says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings

import numpy as np
import pytest
from helpers.hostile_images import CASES, HEIGHT, WIDTH, Case, picture
from PIL import Image, ImageOps

from nvlm.data.images.image import HEADER_BYTES, decode_image, read_image_size
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import SampleError

MAX_MEGAPIXELS = 5.0


def test_there_are_many_kinds_and_each_has_its_own_name():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_image(case: Case):
    if case.name.startswith("HEIC") and importlib.util.find_spec("pillow_heif"):
        pytest.skip("pillow-heif reads HEIC here")
    data = case.make()
    with warnings.catch_warnings(action="error"):
        if not case.is_used:
            with pytest.raises(SampleError) as caught:
                decode_image(data, MAX_MEGAPIXELS)
            assert caught.value.reason == case.outcome
            assert 0 < len(caught.value.detail) < 200
            return
        with noting_repairs() as repairs:
            pixels = decode_image(data, MAX_MEGAPIXELS)
        size = read_image_size(data, MAX_MEGAPIXELS)
    # What is called repaired is counted, and nothing else is.
    assert bool(repairs) == (case.outcome == "repaired"), repairs
    assert np.array_equal(pixels, _by_pillow(data))
    assert size == (pixels.shape[1], pixels.shape[0])
    try:
        assert read_image_size(data[:HEADER_BYTES], MAX_MEGAPIXELS) == size
    except SampleError:
        assert len(data) > HEADER_BYTES
    for resize in ("fast", "exact"):
        tiles = cut_tiles(pixels, 6, True, 56, resize)
        assert tiles.shape[1:] == (3, 56, 56)


def _by_pillow(data: bytes) -> np.ndarray:
    """Pillow's own conversion, but for 16-bit gray, which it would clip to white."""
    with warnings.catch_warnings(action="ignore"):
        image = Image.open(io.BytesIO(data))
        with contextlib.suppress(SyntaxError):  # damaged EXIF
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode == "I":
            return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "name", ["animated GIF", "animated WebP", "animated PNG", "MPO (stereo JPEG)"]
)
def test_the_first_frame_is_thepicture(name: str):
    (data,) = (case.make() for case in CASES if case.name == name)
    pixels = decode_image(data).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels - np.asarray(picture())).mean() < 10


def test_16_bit_gray_keeps_its_range():
    (data,) = (case.make() for case in CASES if case.name == "16-bit gray PNG")
    assert np.unique(decode_image(data)).tolist() == list(range(256))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HEIC, damaged or without pillow-heif", r"HEIC image.*pip install 'nvlm\[heif\]'"),
        ("SVG", "an SVG drawing.*readable are JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"),
        ("text named .jpg", "text .'404: not found"),
        ("empty file", "an empty file"),
        ("32-bit floats", "mode F.*store 8-bit RGB"),
        ("decompression bomb", "3000 x 2000 pixels, over data.max_image_megapixels 5"),
        ("truncated JPEG", "truncated"),
    ],
)
def test_messages_say_what_was_found(name: str, message: str):
    (data,) = (case.make() for case in CASES if case.name == name)
    with pytest.raises(SampleError, match=message):
        decode_image(data, MAX_MEGAPIXELS)
