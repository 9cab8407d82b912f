"""`nvlm generate`: one question about image files, answered by a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvlm.data.image import decode_image
from nvlm.data.regular_files import MAX_IMAGE_BYTES, read_regular_file
from nvlm.data.sample import IMAGE_MARK, SampleError
from nvlm.errors import DataError
from nvlm.parallel.groups import shut_down


def answer(checkpoint: Path, prompt: str, images: Sequence[Path], max_new_tokens: int) -> str:
    """The checkpoint's greedy answer, tiled and tokenised as its training stage says.

    Args:
        prompt: the user turn. Without an `<image>` mark, each image gets one in front of it.
        images: files, in the order of their marks.

    Raises:
        CheckpointError, ConfigError: as `load_for_generation`.
        DataError: an image cannot be read, or marks and images differ in number.
    """
    # Before any process group starts.
    pictures = [_open(path) for path in images]
    if IMAGE_MARK not in prompt:
        prompt = f"{IMAGE_MARK}\n" * len(pictures) + prompt
    num_marks = prompt.count(IMAGE_MARK)
    if num_marks != len(pictures):
        raise DataError(f"{num_marks} {IMAGE_MARK} marks in the prompt for {len(pictures)} images")
    import torch

    from nvlm.data.encode import SampleEncoder, prepare_prompt
    from nvlm.generate.greedy import generate_greedy
    from nvlm.generate.load import load_for_generation

    model, tokenizer, config = load_for_generation(checkpoint)
    encoder = SampleEncoder.from_config(config)
    question = prepare_prompt(config, encoder, [{"role": "user", "content": prompt}], pictures)
    new_ids = generate_greedy(
        model,
        tokenizer,
        config,
        question.tokens.tolist(),
        torch.from_numpy(question.tiles),
        max_new_tokens,
        stop_ids={encoder.tokenizer.end_id},
    )
    shut_down()
    return tokenizer.decode(new_ids, skip_special_tokens=True).strip()


def _open(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_image(read_regular_file(path, MAX_IMAGE_BYTES))
    except (OSError, SampleError) as error:
        raise DataError(f"{path}: {error}") from None
