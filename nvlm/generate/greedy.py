"""Greedy decoding with a key-value cache, under tensor and pipeline parallelism.

The prompt goes through the model once; each later step runs one token against Megatron-core's
cache (`StaticInferenceContext`). With a pipeline, hidden states travel from stage to stage and the
last stage's choice is sent to all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm import platform
from nvlm.config.schema import RunConfig
from nvlm.errors import DataError
from nvlm.sizes.visual import VisualLayout

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext

    from nvlm.model.nvlm_d import NVLMD


@torch.no_grad()
def generate_greedy(
    model: NVLMD,
    config: RunConfig,
    image_id: int,
    prompt_ids: Sequence[int],
    tiles: Tensor,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[int]:
    """The most likely next tokens, up to `max_new_tokens` or to a stop token (which is included).

    Every process of a model replica calls this with the same arguments and gets the same answer.

    Args:
        model: this process's pipeline stage, in evaluation mode.
        image_id: the placeholder's.
        prompt_ids: tokens with their image placeholders.
        tiles: [n, 3, image_size, image_size] uint8, in order of their placeholders; n may be 0.

    Raises:
        DataError: placeholders and tiles disagree, or the answer would not fit the positions that
            the model was trained for.
    """
    from megatron.core.inference.contexts import StaticInferenceContext

    device = platform.current().device()
    prompt = torch.tensor([list(prompt_ids)], dtype=torch.int64)
    image_positions = (prompt[0] == image_id).nonzero()[:, 0]
    tokens = prompt.to(device)
    num_positions = tokens.shape[1] + max_new_tokens
    _check_tiles(config, len(image_positions), tiles.shape[0])
    check_positions(config, tokens.shape[1], max_new_tokens)

    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=num_positions)
    images = {"image_positions": image_positions.to(device), "tiles": tiles.to(device)}
    answer: list[int] = []
    while len(answer) < max_new_tokens and not (answer and answer[-1] in stop_ids):
        start, length = context.sequence_len_offset, tokens.shape[1]
        positions = torch.arange(start, start + length, device=device)[None]
        tokens = _next_token(model, tokens, positions, context, images)
        context.increment_sequence_len_offset(length)
        context.enable_decode_mode()
        images = {}
        answer.append(int(tokens))
    return answer


def _next_token(
    model: NVLMD,
    tokens: Tensor,
    positions: Tensor,
    context: StaticInferenceContext,
    images: dict[str, Tensor],
) -> Tensor:
    """[1, 1] int64, the same on every process of the replica."""
    groups = model.language_model.pg_collection
    stage, num_stages = groups.pp.rank(), groups.pp.size()
    if stage > 0:
        shape = (tokens.shape[1], 1, model.config.hidden_size)
        hidden = torch.empty(shape, dtype=model.config.params_dtype, device=tokens.device)
        dist.recv(hidden, dist.get_global_rank(groups.pp, stage - 1))
        model.set_input_tensor(hidden)
    output = model.generate_step(tokens, positions, context, **images)
    if stage < num_stages - 1:
        dist.send(output.contiguous(), dist.get_global_rank(groups.pp, stage + 1))
        chosen = torch.empty((1, 1), dtype=torch.int64, device=tokens.device)
    else:
        chosen = output[:, -1].argmax(-1, keepdim=True)
        if groups.tp.size() > 1:
            # Ranks may differ in the last bits: one of them decides.
            dist.broadcast(chosen, dist.get_global_rank(groups.tp, 0), group=groups.tp)
    if num_stages > 1:
        dist.broadcast(chosen, dist.get_global_rank(groups.pp, num_stages - 1), group=groups.pp)
    return chosen


def check_positions(config: RunConfig, num_prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise `DataError` where prompt and answer have more tokens than the model has positions."""
    limit = config.model.language.max_position_embeddings
    if num_prompt_tokens + max_new_tokens > limit:
        raise DataError(
            f"a prompt of {num_prompt_tokens:,} tokens and {max_new_tokens:,} new ones: the model "
            f"has {limit:,} positions (model.language.max_position_embeddings); use a shorter "
            "prompt, fewer images or fewer new tokens"
        )


def _check_tiles(config: RunConfig, num_placeholders: int, num_tiles: int) -> None:
    visual = VisualLayout.from_config(config)
    if num_placeholders != visual.num_tokens(num_tiles):
        raise DataError(
            f"{num_placeholders} {config.model.image_token} in the prompt for {num_tiles} tiles x "
            f"{visual.num_tokens_per_tile} tokens"
        )
