"""Pixels equal Pillow's, whichever decoder ran; images stand upright; damage is never decoded."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.shard_writing import draw_image
from PIL import Image, ImageOps

from nvlm.data.images import image as image_module
from nvlm.data.images.image import decode_image, read_image_size
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.samples.sample import SampleError

ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise on top: many values, edges and odd sides."""
    smooth = np.asarray(Image.open(io.BytesIO(draw_image(width, height, seed)))).astype(int)
    added = np.random.default_rng(seed).integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + added).clip(0, 255).astype(np.uint8))


def as_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each image decoded: whether a fast decoder gave the pixels."""
    found: list[bool] = []

    def spy(image, data, decode=image_module._decode_quickly):
        pixels = decode(image, data)
        found.append(pixels is not None)
        return pixels

    monkeypatch.setattr(image_module, "_decode_quickly", spy)
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        *[("JPEG", {"quality": q, "subsampling": s}) for q in (30, 95) for s in (0, 1, 2)],
        ("JPEG", {"progressive": True}),
        ("JPEG", {"quality": 90, "restart_marker_blocks": 3}),
        ("JPEG", {"quality": 90, "keep_rgb": True}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (37, 1), (1, 53), (317, 203)])
def test_fast_decoders_are_bit_equal_to_pillow(kind, options, size, quick):
    data = encode(noise(*size), kind, **options)
    pixels = decode_image(data)
    assert quick == [True]
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, as_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
def test_exif_rotation_is_applied_to_pixels_and_to_sides(kind: str, orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"save_all": True, "append_images": [noise(51, 30, 1)]} if kind == "MPO" else {}
    data = encode(noise(51, 30), kind, exif=exif, **options)
    pixels = decode_image(data)
    assert np.array_equal(pixels, as_pillow(data))
    width, height = (30, 51) if orientation >= 5 else (51, 30)
    assert pixels.shape == (height, width, 3)
    assert read_image_size(data) == (width, height)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sides_from_the_first_bytes_know_the_rotation(kind: str):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(noise(300, 200), kind, exif=exif)
    assert read_image_size(data[: len(data) // 4]) == (200, 300)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientation_turns_nothing(value: int):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    data = encode(noise(40, 20), "JPEG", exif=exif)
    assert read_image_size(data) == (40, 20)
    assert decode_image(data).shape == (20, 40, 3)


@pytest.mark.parametrize("content", ["photograph", "noise"])
@pytest.mark.parametrize(
    "size",
    # Wider and narrower than the tiles, where Pillow's passes change places and where not.
    [(640, 480), (480, 640), (448, 448), (90, 700), (700, 90), (33, 5), (1, 40), (1201, 903)],
)
def test_fast_resize_is_within_two_steps_of_exact(size: tuple[int, int], content: str):
    if content == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    else:
        pixels = np.array(noise(*size))
    fast, exact = (cut_tiles(pixels, 6, True, 112, how) for how in ("fast", "exact"))
    assert fast.shape == exact.shape and fast.dtype == np.uint8
    difference = np.abs(fast.astype(int) - exact)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_the_limit_is_checked_before_decoding_and_names_the_setting():
    data = encode(Image.new("RGB", (2000, 1000)), "PNG")
    assert read_image_size(data, max_megapixels=2) == (2000, 1000)
    # What follows the header cannot be decoded: nobody tried.
    header = data[:60]
    for read in (read_image_size, decode_image):
        with pytest.raises(SampleError, match=r"data\.max_image_megapixels 1\.9") as caught:
            read(header, 1.9)
        assert caught.value.reason == "image_too_large"


def test_images_beyond_pillows_own_limit_are_ours_to_judge():
    data = encode(Image.new("1", (20_000, 10_000)), "PNG")
    assert read_image_size(data, max_megapixels=200) == (20_000, 10_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_give_pillows_pixels_or_an_error(kind: str):
    """Flipped, lost and cut bytes: never other pixels than Pillow's, never another exception."""
    whole = encode(noise(61, 47), kind)
    random = np.random.default_rng(3)
    reasons = []
    for number in range(120):
        data = bytearray(whole)
        position = int(random.integers(len(data)))
        if number % 3 == 0:
            data[position] ^= 1 << int(random.integers(8))
        elif number % 3 == 1:
            del data[position : position + 5]
        else:
            del data[position:]
        damaged = bytes(data)
        try:
            pixels = decode_image(damaged, max_megapixels=1)
        except SampleError as error:
            reasons.append(error.reason)
        else:
            assert np.array_equal(pixels, as_pillow(damaged))
    assert set(reasons) <= {"image", "image_format", "image_too_large"}
    assert len(reasons) >= 40
