"""One question about image files, held to the rules that training has for a sample's turns.

This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm.data.images.image import decode_image
from nvlm.data.samples.conversations import read_conversation
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import IMAGE_MARK, Messages, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, checked_text, shown
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, read_regular_file
from nvlm.errors import DataError
from nvlm.generate.request import Sampling

GREEDY = Sampling()


@dataclass(frozen=True)
class Asked:
    """A question as it was put, and what became of reading it."""

    id: str | int  # unique among those that are asked together
    images: tuple[str, ...]  # as they were named
    paths: tuple[Path, ...]  # where they lie
    # `{"prompt": text}` or `{"messages": [...]}` as it was given, for the row of its answer.
    words: Mapping[str, Any]
    messages: Messages = field(default_factory=list)  # with a mark for each image
    sampling: Sampling = GREEDY
    own_sampling: Mapping[str, Any] = field(default_factory=dict)  # what its line said itself
    problem: SampleError | None = None  # it cannot be asked

    def as_fields(self) -> dict[str, Any]:
        """What a row says of the question."""
        own = {"sampling": dict(self.own_sampling)} if self.own_sampling else {}
        return {"id": self.id, "images": list(self.images), **self.words, **own}


def messages_of_prompt(
    prompt: Any, num_images: int, system: str | None = None, name: str = "--prompt"
) -> Messages:
    """A user turn with a mark for each image, after the system turn if there is one.

    Without an `<image>` mark in the prompt, each image gets one in front of it.

    Args:
        name: of the prompt, in messages.

    Raises:
        SampleError: it is no text, has the mark of a video, or not as many marks as images.
    """
    text = checked_text(prompt, name)
    if VIDEO_MARK in text:
        raise SampleError(
            "image_mark", f"{name} has the mark {VIDEO_MARK}; only image files can be given"
        )
    if IMAGE_MARK not in text:
        text = f"{IMAGE_MARK}\n" * num_images + text
    num_marks = text.count(IMAGE_MARK)
    if num_marks != num_images:
        raise SampleError(
            "image_count", f"{num_marks} {IMAGE_MARK} marks in the prompt for {num_images} images"
        )
    return _after_system([{"role": "user", "content": text}], system)


def messages_of_turns(turns: Any, num_images: int, system: str | None = None) -> Messages:
    """A conversation up to a user turn, with a mark for each image.

    Without a mark, all images come before the first user turn. A system turn of its own stays.

    Raises:
        SampleError: it is no list of turns that ends with the user's, or not as many marks as
            images.
    """
    if not isinstance(turns, list) or not turns:
        raise SampleError("messages", f"messages is {shown(turns)}, expected a list of turns")
    last = turns[-1]
    if isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt"):
        raise SampleError("role_order", "the last turn is the assistant's, expected the user's")
    answered = [*turns, {"role": "assistant", "content": "answer"}]
    has_marks = any(
        isinstance(turn, dict) and IMAGE_MARK in str(turn.get("content")) for turn in turns
    )
    messages = read_conversation({"messages": answered}, num_images if has_marks else 0, 0)[:-1]
    if not has_marks:
        first = next(turn for turn in messages if turn["role"] == "user")
        first["content"] = f"{IMAGE_MARK}\n" * num_images + first["content"]
    return _after_system(messages, system)


def check_system(system: str | None) -> None:
    """Raise `DataError` unless `system` can be a system turn; None: there is none."""
    if system is not None:
        checked_text(system, "--system")
        for mark in (IMAGE_MARK, VIDEO_MARK):
            if mark in system:
                raise DataError(f"--system has the mark {mark}; images belong to the prompt")


def _after_system(messages: Messages, system: str | None) -> Messages:
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def read_images(
    paths: Sequence[Path], max_megapixels: float
) -> tuple[list[NDArray[np.uint8]], list[tuple[Path, str]]]:
    """Each [height, width, 3] RGB, by training's rules and limits, and what was repaired in which.

    Raises:
        SampleError: one cannot be read; the detail names it.
    """
    images, repaired = [], []
    for path in paths:
        with noting_repairs() as repairs:
            try:
                images.append(
                    decode_image(read_regular_file(path, MAX_IMAGE_BYTES), max_megapixels)
                )
            except OSError as error:
                raise SampleError("missing_image", f"{path}: {error}") from None
            except SampleError as error:
                raise SampleError(error.reason, f"{path}: {error.detail}") from None
        repaired += [(path, repair) for repair in repairs]
    return images, repaired
