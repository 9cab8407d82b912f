"""Images of requests: data URLs only, and no more pixels than the limits allow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers.served import data_url, noise, png_bomb, url_of_bytes

from nvlm.serve.api_errors import ApiError
from nvlm.serve.chat_request import ImageUrl
from nvlm.serve.limits import Limits
from nvlm.serve.pictures import read_pictures

LIMITS = Limits(max_image_megapixels=1)


def read(*urls: str) -> list[np.ndarray]:
    return read_pictures([ImageUrl(f"image {i}", url) for i, url in enumerate(urls)], LIMITS)


def test_pixels_are_those_of_the_file():
    first, second = noise(30, 20), noise(5, 7, seed=1)
    found = read(data_url(first), data_url(second).replace("data:image/png", "DATA:any/thing;a=b"))
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_array_equal(found[1], second)


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://127.0.0.1:1/a.png", "fetches nothing and opens no files"),
        ("https://example.com/a.png", "fetches nothing"),
        ("file:///etc/passwd", "opens no files"),
        ("/etc/passwd", "opens no files"),
        ("", "is empty"),
        ("data:image/png,abc", "without ;base64,"),
        ("data:image/png;base64", "without ;base64,"),
        ("data:image/png;base64,a", "not base64"),
        ("data:image/png;base64,\u00e9", "not base64"),
        ("data:image/png;base64,", "an empty file"),
        (url_of_bytes(b"%PDF-1.7"), "a PDF"),
        (url_of_bytes(b"<svg onload='alert(1)'/>"), "an SVG drawing"),
        (data_url(noise())[:-600], "not readable|not base64"),
    ],
)
def test_what_is_no_image(url: str, message: str):
    with pytest.raises(ApiError, match=message) as caught:
        read(data_url(noise()), url)
    assert (caught.value.status, caught.value.code) == (400, "invalid_image")
    assert caught.value.field == "image 1"
    assert len(caught.value.message) < 300


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = url_of_bytes(png_bomb(4000, 4000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(ApiError, match=r"4000 x 4000 pixels, over .*-image-megapixels 1$"):
        read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "its pixels have 48 MB"


def test_images_share_one_limit():
    half = data_url(np.zeros((700, 1000, 3), np.uint8))
    assert len(read(half)) == 1
    with pytest.raises(ApiError, match=r"up to image 1 have 1\.4 megapixels together, over") as hit:
        read(half, half)
    assert hit.value.field == "image 1"
