"""What the model gets of an image, for the page to show: its tiles, their tags, its tokens."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from nvlm.data.images.tiling import choose_grid
from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.errors import DataError
from nvlm.serve.api_errors import bad_request
from nvlm.serve.chat_fields import Fields, read_object, refusal
from nvlm.serve.chat_request import ImageUrl, max_tiles_of
from nvlm.serve.limits import Limits
from nvlm.serve.pictures import read_pictures
from nvlm.views.preview import ShownImage
from nvlm.views.preview_figures import draw_figure

if TYPE_CHECKING:
    from nvlm.generate.engine import Engine

_QUESTION = "What is this?"


class PreviewFields(Fields):
    image: str  # a data URL
    detail: Literal["auto", "low", "high"] | None = None


def preview(body: bytes, engine: Engine, limits: Limits) -> dict[str, Any]:
    """Size, grid, tags and tokens of an image, with pictures of it and its tiles as data URLs.

    Raises:
        ApiError: 400; the body or the image is refused, as for a chat completion.
    """
    try:
        fields = PreviewFields.model_validate(read_object(body))
    except ValidationError as error:
        raise refusal(error) from None
    (pixels,) = read_pictures([ImageUrl("image", fields.image)], limits)
    height, width, _ = pixels.shape
    most = max_tiles_of(fields.detail)
    marked = [{"role": "user", "content": f"{IMAGE_MARK}\n{_QUESTION}"}]
    bare = [{"role": "user", "content": _QUESTION}]
    try:
        prompt = engine.prepare(marked, [pixels], 1, most)
        num_other_tokens = len(engine.prepare(bare, [], 1).tokens)
    except DataError as error:
        raise bad_request(str(error), "image", "context_length_exceeded") from None
    visual = engine.encoder.visual
    most = most or visual.max_num_tiles
    grid = choose_grid(width, height, most, visual.image_size, visual.tiling)
    is_padded = visual.tiling != "stretch"
    shown = ShownImage((width, height), grid, visual.tags(grid), prompt.tiles, is_padded)
    figure = draw_figure(shown)
    return {
        **asdict(figure),
        "width": width,
        "height": height,
        "num_tiles": len(prompt.tiles),
        "tile_size": visual.image_size,
        # With tags and what stands around the image.
        "num_tokens": len(prompt.tokens) - num_other_tokens,
        "num_image_tokens": int(prompt.image_mask.sum()),
    }
