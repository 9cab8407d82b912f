"""The most likely answer to one question, asked by all processes of a replica alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nvlm.config.schema import RunConfig
from nvlm.errors import DataError
from nvlm.generate.request import Sampling
from nvlm.generate.thrift import Thrift
from nvlm.sizes.visual import Grid

if TYPE_CHECKING:
    from nvlm.data.text.alignment import EncodedAlignment
    from nvlm.data.text.beside import EncodedBeside
    from nvlm.model.nvlm_d import NVLMD


def generate_greedy(
    model: NVLMD,
    config: RunConfig,
    image_id: int,
    prompt_ids: Sequence[int],
    tiles: Tensor,
    max_new_tokens: int,
    stop_ids: Collection[int],
    thrift: Thrift | None = None,
    beside: EncodedBeside | None = None,
    alignment: EncodedAlignment | None = None,
    grids: tuple[Grid, ...] = (),
) -> list[int]:
    """The most likely next tokens, up to `max_new_tokens` or to a stop token (which is included).

    Every process of a model replica calls this with the same arguments and gets the same answer.
    For many questions see `nvlm.generate.session`.

    Args:
        model: this process's pipeline stage, in evaluation mode.
        image_id: the placeholder's.
        prompt_ids: tokens with their image placeholders.
        tiles: [n, 3, image_size, image_size] uint8, in order of their placeholders; n may be 0.
        thrift: what is kept of the prompt, which has the placeholders that this leaves it; None:
            all.
        beside: what NVLM-X and NVLM-H read beside the prompt.
        alignment: what the gate of `stage.alignment` reads of it.
        grids: of its images, with `model.deepstack: tiles`.

    Raises:
        DataError: placeholders and tiles disagree, or the answer would not fit the positions that
            the model was trained for.
    """
    # Megatron-core may only be imported once the platform was chosen.
    from nvlm.generate.decoder import Begun, Decoder, Work, check_tiles, num_tokens_beside
    from nvlm.model.parts.cache import row_length

    tokens = np.array(prompt_ids, dtype=np.int64)
    thrift = thrift or Thrift()
    num_placeholders = int((tokens == image_id).sum())
    check_tiles(config, thrift, num_placeholders, tiles.shape[0], beside, grids)
    check_positions(config, len(tokens), max_new_tokens)
    if max_new_tokens == 0:
        return []
    num_places = thrift.num_cached(len(tokens)) + max_new_tokens
    num_places = row_length(max(num_places, num_tokens_beside(beside)))
    decoder = Decoder(model, config, image_id, num_places, thrift)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    begun = Begun("", tokens, tiles, len(tiles), sampling, beside, alignment, grids)
    work = Work(begun=(begun,))
    answer: list[int] = []
    while len(answer) < max_new_tokens and not (answer and answer[-1] in stop_ids):
        answer.append(decoder.run(work)[""])
        work = Work()
    return answer


def check_positions(config: RunConfig, num_prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise `DataError` where prompt and answer have more tokens than the model has positions."""
    limit = config.model.language.max_position_embeddings
    if num_prompt_tokens + max_new_tokens > limit:
        raise DataError(
            f"a prompt of {num_prompt_tokens:,} tokens and {max_new_tokens:,} new ones: the model "
            f"has {limit:,} positions (model.language.max_position_embeddings); use a shorter "
            "prompt, fewer images or fewer new tokens"
        )
