"""Real training steps of the small model: what a layout must not change, collected for comparison.

As a script under torchrun it goes through several layouts, one after another, with the same
processes, and writes each rank's results to a file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import small_model
import torch
import variants
from torch import Tensor

from nvlm.batch import MicroBatch, StepBatch
from nvlm.config import RunConfig
from nvlm.parallel.groups import Parallel, initialize, shut_down

# Four layers: one for each stage of four, or for each chunk of two stages with two.
SIZES = ["model.language.num_layers=4"]
# As configs/model/internvit_300m_qwen2_0_5b.yaml, and zero heads besides.
SMALL = [*variants.INTERNVIT_300M, *variants.SHARED_EMBEDDINGS]
PROJECTOR_ONLY = [
    'stage.freeze=["vision_model.*","language_model.*"]',
    "train.recompute.vision.granularity=none",
]
# Well above the rounding of a gradient: Adam divides by its size, so an element that ought to be
# zero would otherwise move by a whole step in a direction that rounding decides.
OPTIMIZER = ["train.optimizer.epsilon=1e-4", "train.schedule.warmup_steps=0"]


def config_of(*overrides: str) -> RunConfig:
    return small_model.small_config(*SIZES, *overrides)


def with_images(config: RunConfig) -> list[MicroBatch]:
    """The first and third have images; with two data ranks, the second one has none at all."""
    return [
        small_model.batch(config, 1, [60, 20], num_tiles=2),
        small_model.batch(config, 2, [30, 50], num_tiles=0),
        small_model.batch(config, 3, [56, 8, 16], num_tiles=3),
        small_model.batch(config, 4, [80], num_tiles=0),
    ]


def without_images(config: RunConfig) -> list[MicroBatch]:
    return [small_model.batch(config, seed, [40, 40], num_tiles=0) for seed in range(5, 9)]


def all_cases(overrides: list[str]) -> dict:
    """Every result of one layout on this process. `overrides` name the layout."""
    config, small = config_of(*overrides), config_of(*overrides, *SMALL, *OPTIMIZER)
    projector_only = config_of(*overrides, *PROJECTOR_ONLY)
    parallel = initialize(config)
    chunks = wrapped(small_model.build_chunks(config, parallel))
    small_chunks = wrapped(small_model.build_chunks(small, parallel))
    projector_chunks = small_model.build_chunks(projector_only, parallel)
    freeze(projector_chunks, projector_only, parallel)
    projector_chunks = wrapped(projector_chunks)
    return {
        "with images": losses_and_gradients(chunks, with_images(config), parallel),
        "without images": losses_and_gradients(chunks, without_images(config), parallel),
        "InternViT-300M, shared embeddings": losses_and_gradients(
            small_chunks, with_images(config), parallel
        ),
        "projector only": losses_and_gradients(projector_chunks, with_images(config), parallel),
        "two steps, InternViT-300M, shared embeddings": change_in_two_steps(small, parallel),
    }


def freeze(chunks: list, config: RunConfig, parallel: Parallel) -> None:
    from nvlm.train.stages import freeze

    freeze(chunks, config, parallel)


def wrapped(chunks: list) -> list:
    """In Megatron-core's data-parallel wrapper, with whole gradients on every rank."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=False
    )
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = finalize_model_grads
    return [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks]


def losses_and_gradients(chunks: list, micro_batches: list[MicroBatch], parallel: Parallel) -> dict:
    """One step on Megatron-core's schedule and gradient finalisation, without the optimizer.

    Returns:
        `losses`: micro-batch -> its per-token losses, for those of this data rank (empty on all
        pipeline stages but the last).
        `tensors`: the gradients, a list of (sharded key, layer, slices of the global tensor,
        global shape, values).
    """
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    losses: dict[int, Tensor] = {}

    def forward(iterator, chunk):
        index, micro_batch = next(iterator)

        def loss(per_token: Tensor):
            mask = micro_batch.loss_mask()
            losses[index] = (per_token * mask).detach().clone()
            return (per_token * mask).sum(), mask.sum().int(), {}

        return chunk(micro_batch), loss

    for chunk in chunks:
        chunk.zero_grad_buffer()
    mine = list(enumerate(micro_batches))[parallel.data_rank :: parallel.data_size]
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(mine) for _ in chunks],
        model=chunks,
        num_microbatches=len(mine),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    gradients = _shards(chunks, lambda parameter: parameter.main_grad)
    return {"losses": losses, "tensors": gradients}


def change_in_two_steps(config: RunConfig, parallel: Parallel) -> dict:
    """The training loop's own optimizer and step.

    Returns:
        `losses`: step -> (mean loss, gradient norm). `tensors`: how far the weights moved.
    """
    from nvlm.train.optim import build_optimizer, build_scheduler, wrap_data_parallel
    from nvlm.train.stages import multipliers
    from nvlm.train.step import train_step

    chunks = small_model.build_chunks(config, parallel)
    start = {id(p): p.detach().clone() for chunk in chunks for p in chunk.parameters()}
    factors = multipliers(chunks, config, parallel)
    chunks = wrap_data_parallel(chunks, parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    losses = {}
    for step, micro_batches in enumerate([with_images(config), without_images(config)]):
        scheduler.step(increment=1)
        mine = micro_batches[parallel.data_rank :: parallel.data_size]
        result = train_step(chunks, optimizer, StepBatch(mine, [], {}), parallel, step)
        losses[step] = torch.tensor([result.loss, result.grad_norm])
    return {"losses": losses, "tensors": _shards(chunks, lambda p: p - start[id(p)])}


def _shards(chunks: list, values_of) -> list[tuple]:
    """`values_of` every trainable parameter, with their place in the global tensors."""
    from nvlm.model.initialize import sharded_tensors

    shards = []
    for chunk in chunks:
        for name, entry in chunk.module.sharded_state_dict().items():
            if not entry.data.requires_grad:
                continue
            values = values_of(entry.data).detach().clone()
            for shard in sharded_tensors({name: replace(entry, data=values)}):
                layer = shard.global_offset[0] if shard.prepend_axis_num else None
                slices = shard.global_slice()[shard.prepend_axis_num :]
                shape = shard.global_shape[shard.prepend_axis_num :]
                shards.append((shard.key, layer, slices, shape, shard.data))
    return shards


def assemble(results: list[dict]) -> dict[tuple[str, int | None], Tensor]:
    """The global tensors from all ranks' shards; copies of one on several ranks must agree."""
    whole: dict[tuple[str, int | None], Tensor] = {}
    for result in results:
        for key, layer, slices, shape, values in result["tensors"]:
            target = whole.setdefault((key, layer), torch.full(shape, torch.nan))
            if not target[slices].isnan().any():
                torch.testing.assert_close(target[slices], values, rtol=1e-5, atol=1e-7, msg=key)
            target[slices] = values
    return whole


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, overrides in layouts.items():
        print(f"layout {name}", flush=True)
        results = all_cases(overrides)
        rank = torch.distributed.get_rank()
        torch.save(results, folder / f"{name} rank{rank}.pt")
    shut_down()


if __name__ == "__main__":
    main()
