"""A small NVLM-D and batches for it, and one real training step's gradients at any layout.

Run as a script under torchrun it writes the step's losses and gradients to a file per rank.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from torch import Tensor

from nvlm.batch import IGNORED_LABEL, MicroBatch, check_micro_batch
from nvlm.config import RunConfig, load_config
from nvlm.parallel.groups import Parallel, initialize, shut_down

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = ["model.vision.num_layers=2", "model.language.num_layers=2", "train.precision=fp32"]


def small_config(*overrides: str) -> RunConfig:
    return load_config(REPOSITORY / "configs/run/tiny/sft.yaml", [*SIZES, *overrides])


def build(config: RunConfig, parallel: Parallel):
    """The model with every parameter random, so that no term of a gradient vanishes."""
    from nvlm.model.initialize import initial_tensor, initialize_weights, sharded_tensors
    from nvlm.model.nvlm_d import build_model

    model = build_model(config, parallel)
    initialize_weights(model, config)
    for shard in sharded_tensors(model.sharded_state_dict()):
        layer = shard.global_offset[0] if shard.prepend_axis_num else None
        shape = shard.global_shape[shard.prepend_axis_num :]
        if len(shape) > 1:
            continue
        seed = hashlib.sha256(f"{shard.key} {layer}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        noise = 0.3 * torch.randn(shape, generator=generator)
        if "_layernorm.weight" in shard.key:
            # Zero heads keep their zero norm weights.
            noise *= initial_tensor(config, shard.key, layer, shape) != 0
        with torch.no_grad():
            shard.data.add_(noise[shard.global_slice()[shard.prepend_axis_num :]])
    return model


def batch(config: RunConfig, seed: int, documents: list[int], num_tiles: int) -> MicroBatch:
    """Documents of the given lengths; all tiles stand at the start of the first one."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, size = sum(documents), config.model.vision.image_size
    starts = torch.tensor([0, *documents]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in documents])
    image_mask = torch.zeros(1, num_tokens, dtype=torch.bool)
    num_placeholders = num_tiles * config.model.vision.num_tokens_per_tile
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
    check_micro_batch(micro_batch, config.model.vision.num_tokens_per_tile)
    return micro_batch


def training_batches(config: RunConfig) -> list[MicroBatch]:
    """Two with images and, between them, one without."""
    return [
        batch(config, 1, [60, 20], num_tiles=2),
        batch(config, 2, [30, 50], num_tiles=0),
        batch(config, 3, [56, 8, 16], num_tiles=3),
    ]


def losses_and_gradients(
    config: RunConfig, parallel: Parallel, micro_batches: list[MicroBatch] | None = None
) -> dict:
    """One step on Megatron-core's schedule, data-parallel wrapper and gradient finalisation.

    Args:
        micro_batches: None: `training_batches`.

    Returns:
        `losses`: per-token losses of each micro-batch (last stage; else empty). `gradients`:
        a list of (sharded key, layer, slices of the global tensor, global shape, gradient).
    """
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    model = build(config, parallel)
    model.config.finalize_model_grads_func = finalize_model_grads
    wrapped = DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False),
        model,
    )
    wrapped.zero_grad_buffer()
    losses: list[Tensor] = []

    def forward(iterator, stage):
        micro_batch = next(iterator)

        def loss(per_token: Tensor):
            mask = micro_batch.loss_mask()
            losses.append((per_token * mask).detach().clone())
            return (per_token * micro_batch.weights()).sum(), mask.sum().int(), {}

        return stage(micro_batch), loss

    micro_batches = micro_batches or training_batches(config)
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(micro_batches),
        model=wrapped,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    return {"losses": losses, "gradients": _gradient_shards(model)}


def _gradient_shards(model) -> list[tuple]:
    from dataclasses import replace

    from nvlm.model.initialize import sharded_tensors

    shards = []
    for name, entry in model.sharded_state_dict().items():
        gradient = entry.data.main_grad.clone()
        for shard in sharded_tensors({name: replace(entry, data=gradient)}):
            layer = shard.global_offset[0] if shard.prepend_axis_num else None
            slices = shard.global_slice()[shard.prepend_axis_num :]
            shape = shard.global_shape[shard.prepend_axis_num :]
            shards.append((shard.key, layer, slices, shape, shard.data))
    return shards


def assemble(results: list[dict]) -> dict[tuple[str, int | None], Tensor]:
    """The global gradients from all ranks' shards."""
    whole: dict[tuple[str, int | None], Tensor] = {}
    for result in results:
        for key, layer, slices, shape, gradient in result["gradients"]:
            target = whole.setdefault((key, layer), torch.full(shape, torch.nan))
            target[slices] = gradient
    return whole


def main() -> None:
    folder, *overrides = sys.argv[1:]
    config = small_config(*overrides)
    parallel = initialize(config)
    result = losses_and_gradients(config, parallel)
    torch.save(result, Path(folder) / f"rank{parallel.rank}.pt")
    shut_down()


if __name__ == "__main__":
    main()
