"""Every format that Pillow opens is read, or left out with a reason."""

from __future__ import annotations

import io

import pytest
from helpers.hostile_images import picture
from PIL import Image

from nvlm.data.images.image import image_type
from nvlm.data.samples.image_formats import (
    FORMATS,
    IMAGE_TYPES,
    NOT_READ,
    UNREAD_IMAGE_TYPES,
    has_image_signature,
)
from nvlm.data.samples.sample import SampleError


def test_all_of_pillows_formats_are_decided_on():
    assert set(Image.OPEN) - set(FORMATS) - set(NOT_READ) == set()
    assert not set(FORMATS) & set(NOT_READ)
    assert not IMAGE_TYPES & UNREAD_IMAGE_TYPES
    for extension, name in Image.registered_extensions().items():
        known = FORMATS.get("JPEG" if name == "MPO" else name) or NOT_READ[name][1]
        assert extension[1:] in known, f"{extension} of {name}"


def test_formats_that_run_programs_or_are_no_pictures_are_not_read():
    assert {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"} <= set(NOT_READ)
    for name in ("EPS", "ICNS"):
        file = io.BytesIO()
        picture().save(file, name)
        with pytest.raises(SampleError):
            image_type(file.getvalue())


Image.init()


@pytest.mark.parametrize("name", [name for name in FORMATS if name in Image.SAVE])
def test_content_decides_the_extension_that_is_written(name: str):
    file = io.BytesIO()
    picture("1" if name in ("XBM", "MSP") else "RGB").save(file, name)
    assert image_type(file.getvalue()) == FORMATS[name][0]


def test_signatures():
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "DDS", "QOI"):
        file = io.BytesIO()
        picture().save(file, name)
        assert has_image_signature(file.getvalue()[:16]), name
    for data in (b"", b"text", b"BMW is a car", b"\x93NUMPY\x01\x00", b"PK\x03\x04", bytes(16)):
        assert not has_image_signature(data), data
