"""What lmms-eval asks, in the words of this package. This file needs no lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvlm.data.images.image import to_pixels
from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.errors import ConfigError, DataError, NvlmError
from nvlm.generate.asked import read_images
from nvlm.generate.request import Sampling

MAX_NEW_TOKENS = 1024
SETTINGS = {"until", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams"}


def sampling_of(settings: dict[str, Any], task: str, seed: int) -> Sampling:
    """A task's `generation_kwargs`: greedy unless they say otherwise.

    Raises:
        ConfigError: several beams, or a value of another kind.
    """
    if (settings.get("num_beams") or 1) != 1:
        raise ConfigError(
            f"task {task}: generation_kwargs.num_beams {settings['num_beams']}: there is no beam "
            "search; use 1"
        )
    until = settings.get("until") or []
    temperature = settings.get("temperature")
    if temperature is None:
        temperature = 1.0 if settings.get("do_sample") else 0.0
    if settings.get("do_sample") is False:
        temperature = 0.0
    try:
        return Sampling(
            max_new_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
            temperature=float(temperature),
            top_p=float(settings.get("top_p") or 1.0),
            top_k=int(settings.get("top_k") or 0),
            seed=seed,
            stop=tuple([until] if isinstance(until, str) else until),
        )
    except (TypeError, ValueError, NvlmError) as error:
        raise ConfigError(f"task {task}: generation_kwargs {settings}: {error}") from None


def as_trained(
    messages: list[dict[str, Any]], max_megapixels: float
) -> tuple[list[dict[str, str]], list[NDArray[np.uint8]]]:
    """Turns with a mark and a newline where an image stands, and the images, [height, width, 3].

    Where the text has as many `<image>` marks of its own as there are images, these are their
    places.

    Raises:
        DataError: what is neither text nor an image.
    """
    parts = [(turn["role"], part) for turn in messages for part in _parts(turn["content"])]
    images = [_pixels(part["url"], max_megapixels) for _, part in parts if part["type"] == "image"]
    num_marks = sum(part["text"].count(IMAGE_MARK) for _, part in parts if part["type"] == "text")
    mark = "" if num_marks and num_marks == len(images) else f"{IMAGE_MARK}\n"
    turns = []
    for turn in messages:
        content = [mark if p["type"] == "image" else p["text"] for p in _parts(turn["content"])]
        turns.append({"role": turn["role"], "content": "".join(content)})
    return turns, images


def _parts(content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise DataError(f"it has a part of type {part['type']}; only text and images are read")
    return parts


def _pixels(image: Any, max_megapixels: float) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        return to_pixels(image)
    (pixels,), _ = read_images([Path(image)], max_megapixels)
    return pixels
