"""Images of a request: data URLs to pixels. Nothing is fetched and no file is opened."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvlm.data.images.image import decode_image, read_image_size
from nvlm.data.samples.sample import SampleError
from nvlm.serve.api_errors import ApiError, bad_request
from nvlm.serve.chat_request import ImageUrl
from nvlm.serve.limits import Limits

_CODE = "invalid_image"


def read_pictures(images: Sequence[ImageUrl], limits: Limits) -> list[NDArray[np.uint8]]:
    """Each [height, width, 3] RGB, by the rules of training.

    All headers are read before anything is decoded, so that a request is refused for all its images
    together before the first one takes memory.

    Raises:
        ApiError: 400; a URL is none with data in it, its data are no image, or the images have more
            pixels than the limits allow.
    """
    data = [_bytes_of(image) for image in images]
    most = limits.max_image_megapixels
    total = 0
    for image, content in zip(images, data):
        try:
            width, height = read_image_size(content, most)
        except SampleError as error:
            raise _refusal(image, error, most) from None
        total += width * height
        if total > most * 1e6:
            raise bad_request(
                f"the images up to {image.field} have {total / 1e6:.1f} megapixels together, over "
                f"the server's --max-image-megapixels {most:g}",
                image.field,
                _CODE,
            )
    pictures = []
    for image, content in zip(images, data):
        try:
            pictures.append(decode_image(content, most))
        except SampleError as error:
            raise _refusal(image, error, most) from None
    return pictures


def _bytes_of(image: ImageUrl) -> bytes:
    head, comma, encoded = image.url.partition(",")
    scheme = head[:32].partition(":")[0].lower()
    if scheme != "data":
        what = f"a URL that begins with {head[:24]!r}" if head else "empty"
        raise bad_request(
            f"{image.field} is {what}: this server fetches nothing and opens no files; send the "
            "image itself, as data:image/png;base64,...",
            image.field,
            _CODE,
        )
    if not comma or not head.lower().endswith(";base64"):
        raise bad_request(
            f"{image.field} is a data URL without ;base64, before its data", image.field, _CODE
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{image.field}: not base64: {error}", image.field, _CODE) from None


def _refusal(image: ImageUrl, error: SampleError, max_megapixels: float) -> ApiError:
    message = str(error)
    if error.reason == "image_too_large":
        size = message.partition(",")[0]
        message = f"{size}, over the server's --max-image-megapixels {max_megapixels:g}"
    return bad_request(f"{image.field}: {message}", image.field, _CODE)
