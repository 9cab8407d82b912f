"""A small NVLM-D, and batches for it. `layout_steps.py` trains it at many process layouts."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from helpers.paths import REPOSITORY
from nvlm.batch import IGNORED_LABEL, MicroBatch, check_micro_batch
from nvlm.config import RunConfig, load_config
from nvlm.parallel.groups import Parallel
from nvlm.sizes.adapters import LORA_B, run_parameters_by_key
from nvlm.sizes.visual import VisualLayout

SIZES = ["model.vision.num_layers=2", "model.language.num_layers=2", "train.precision=fp32"]


def small_config(*overrides: str) -> RunConfig:
    return load_config(REPOSITORY / "configs/run/tiny/sft.yaml", [*SIZES, *overrides])


def build(config: RunConfig, parallel: Parallel):
    """The model with every parameter random, so that no term of a gradient vanishes."""
    (model,) = build_chunks(config, parallel)
    return model


def build_chunks(config: RunConfig, parallel: Parallel) -> list:
    """`build` where a process holds several parts (virtual pipeline stages)."""
    from nvlm.model.nvlm_d import build_model_chunks

    chunks = build_model_chunks(config, parallel)
    for chunk in chunks:
        _make_random(chunk, config)
    return chunks


def _make_random(model, config: RunConfig) -> None:
    from nvlm.checkpoint_shares import sharded_tensors
    from nvlm.model.parts.initialize import initialize_weights

    table = run_parameters_by_key(config)
    initialize_weights(model, config)
    for shard in sharded_tensors(model.sharded_state_dict()):
        layer = shard.global_offset[0] if shard.prepend_axis_num else None
        shape = shard.global_shape[shard.prepend_axis_num :]
        if len(shape) > 1 and not shard.key.endswith(LORA_B):  # which begin as zero
            continue
        seed = hashlib.sha256(f"{shard.key} {layer}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        noise = 0.3 * torch.randn(shape, generator=generator)
        if zero_heads := table[shard.key].zero_heads:
            zero_heads.of(noise).zero_()
        with torch.no_grad():
            shard.data.add_(noise[shard.global_slice()[shard.prepend_axis_num :]])


def batch(config: RunConfig, seed: int, documents: list[int], num_tiles: int) -> MicroBatch:
    """Documents of the given lengths; all tiles stand at the start of the first one."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, size = sum(documents), config.model.vision.image_size
    starts = torch.tensor([0, *documents]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in documents])
    image_mask = torch.zeros(1, num_tokens, dtype=torch.bool)
    num_placeholders = VisualLayout.from_config(config).num_tokens(num_tiles, 1)
    image_mask[:, 2 : 2 + num_placeholders] = True
    vocabulary = config.model.language.vocab_size
    tokens = torch.randint(0, vocabulary, (1, num_tokens), generator=generator)
    labels = torch.randint(0, vocabulary, (1, num_tokens), generator=generator)
    labels[image_mask] = IGNORED_LABEL
    micro_batch = MicroBatch(
        tokens=tokens,
        labels=labels,
        position_ids=positions[None],
        image_mask=image_mask,
        cu_seqlens=starts,
        tiles=torch.randint(
            0, 256, (num_tiles, 3, size, size), generator=generator, dtype=torch.uint8
        ),
    )
    check_micro_batch(micro_batch, VisualLayout.from_config(config))
    return micro_batch


def mean_loss_gradients(chunks: list, micro_batches: list) -> dict[str, Tensor]:
    """Gradient buffers after one pass of Megatron-core's schedule."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from nvlm.model.parts.names import named_parameters

    def forward(iterator, chunk):
        micro_batch = next(iterator)
        mask = micro_batch.loss_mask()
        return chunk(micro_batch), lambda losses: ((losses * mask).sum(), mask.sum().int(), {})

    for chunk in chunks:
        chunk.zero_grad_buffer()
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(micro_batches),
        model=chunks,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    parameters = named_parameters([chunk.module for chunk in chunks])
    return {name: parameter.main_grad.clone() for name, parameter in parameters}
