"""What the page is told of an image is what the model gets of it."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from helpers.served import data_url, make_checkpoint, noise
from PIL import Image

from nvlm.generate.engine import Engine
from nvlm.serve.api_errors import ApiError
from nvlm.serve.image_preview import preview
from nvlm.serve.limits import Limits

LIMITS = Limits(max_image_megapixels=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Without weights: previews need none."""
    return Engine(make_checkpoint(tmp_path_factory.mktemp("previewed")))


def shown(engine: Engine, pixels: np.ndarray, **more: str) -> dict[str, Any]:
    body = json.dumps({"image": data_url(pixels), **more}).encode()
    return preview(body, engine, LIMITS)


def test_grid_tags_and_tokens_are_the_prompts(engine: Engine):
    brightness = np.linspace(0, 255, 900, dtype=np.uint8)  # which JPEG keeps
    pixels = np.broadcast_to(brightness[None, :, None], (500, 900, 3)).copy()
    found = shown(engine, pixels)
    question = engine.prepare([{"role": "user", "content": "<image>\nHi"}], [pixels], 1)
    without = engine.prepare([{"role": "user", "content": "Hi"}], [], 1)
    assert found["num_tiles"] == len(question.tiles) == 3
    assert (found["columns"], found["rows"]) == (2, 1)
    assert (found["width"], found["height"]) == (900, 500)
    assert found["num_tokens"] == len(question.tokens) - len(without.tokens)
    assert found["num_image_tokens"] == question.image_mask.sum()
    tags = [tile["tag"] for tile in (*found["tiles"], found["thumbnail"])]
    assert tags == ["<tile_1>", "<tile_2>", "<tile_global_thumbnail>"]
    encoded = found["tiles"][1]["picture"].partition("base64,")[2]
    tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), float)
    means = [pixels.mean() for pixels in question.tiles[:2]]
    assert abs(tile.mean() - means[1]) < 3 < abs(tile.mean() - means[0])


def test_low_detail_and_small_images_are_one_tile(engine: Engine):
    for found in (shown(engine, noise(900, 500), detail="low"), shown(engine, noise(9, 9))):
        assert (found["columns"], found["rows"], found["num_tiles"]) == (1, 1, 1)
        assert found["thumbnail"] is None
        assert [cell["tag"] for cell in found["cells"]] == ["<tile_global_thumbnail>"]


@pytest.mark.parametrize(
    "body, field",
    [
        (b"{}", "image"),
        (b'{"image": 5}', "image"),
        (b'{"image": "http://127.0.0.1/a.png"}', "image"),
        (b'{"image": "data:image/png;base64,AAAA"}', "image"),
        (b'{"image": "data:,", "detail": "most"}', "detail"),
        (b'{"image": "data:,", "path": "a"}', "path"),
    ],
)
def test_refusals(engine: Engine, body: bytes, field: str):
    with pytest.raises(ApiError) as caught:
        preview(body, engine, LIMITS)
    assert (caught.value.status, caught.value.field) == (400, field)
