"""`nvlm generate`: one question about image files, answered by a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvlm.checkpoint_io import read_config, resolve_checkpoint
from nvlm.config.schema import ParallelConfig
from nvlm.data.images.image import decode_image
from nvlm.data.samples.repairs import REPAIRS, noting_repairs
from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, checked_text
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, read_regular_file
from nvlm.errors import DataError
from nvlm.parallel.groups import is_main_process
from nvlm.printing import say


def answer(
    checkpoint: Path,
    prompt: str,
    images: Sequence[Path],
    max_new_tokens: int,
    tensor: int | None = None,
    pipeline: int | None = None,
) -> str:
    """The checkpoint's greedy answer, tiled and tokenised as its training stage says.

    What training would repair about an image is repaired and said on standard error.

    Args:
        prompt: the user turn. Without an `<image>` mark, each image gets one in front of it.
        images: files, in the order of their marks; of the formats and within the
            `data.max_image_megapixels` of the checkpoint's training.
        tensor, pipeline: layout. Both None: see `Engine`.

    Raises:
        CheckpointError, ConfigError: as `Engine`.
        DataError: an image cannot be read, marks and images differ in number, the prompt is no
            text, or prompt and answer are too long. Before the model is loaded.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    config = read_config(checkpoint)
    layout = None
    if tensor is not None or pipeline is not None:
        layout = ParallelConfig(tensor=tensor or 1, pipeline=pipeline or 1)
    pictures = [_read_image(path, config.data.max_image_megapixels) for path in images]
    text = _with_marks(prompt, len(pictures))
    # Imports torch: what is wrong with the images is reported before.
    from nvlm.generate.engine import Engine

    with Engine(checkpoint, layout) as engine:
        messages = [{"role": "user", "content": text}]
        question = engine.prepare(messages, pictures, max_new_tokens)
        engine.load()
        return engine.answer(question, max_new_tokens).text


def _with_marks(prompt: str, num_images: int) -> str:
    """The prompt with a mark for each image, held to the rules of a sample's user turn."""
    try:
        checked_text(prompt, "--prompt")
    except SampleError as error:
        raise DataError(str(error)) from None
    if VIDEO_MARK in prompt:
        raise DataError(f"--prompt has the mark {VIDEO_MARK}; only image files can be given")
    if IMAGE_MARK not in prompt:
        return f"{IMAGE_MARK}\n" * num_images + prompt
    num_marks = prompt.count(IMAGE_MARK)
    if num_marks != num_images:
        raise DataError(f"{num_marks} {IMAGE_MARK} marks in the prompt for {num_images} images")
    return prompt


def _read_image(path: Path, max_megapixels: float) -> NDArray[np.uint8]:
    """[height, width, 3] RGB, by the rules and limits of training; says what it repairs."""
    with noting_repairs() as repairs:
        try:
            pixels = decode_image(read_regular_file(path, MAX_IMAGE_BYTES), max_megapixels)
        except (OSError, SampleError) as error:
            raise DataError(f"--image {path}: {error}") from None
    if repairs and is_main_process():
        for repair in repairs:
            say(f"--image {path}: {REPAIRS[repair]}", sys.stderr)
    return pixels
