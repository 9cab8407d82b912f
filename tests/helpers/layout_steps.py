"""Real training steps of the small model: what a layout must not change, collected for comparison.

As a script under torchrun it goes through several layouts, one after another, with the same
processes, and writes each rank's results to a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from helpers import beside_batches, small_model, variants
from helpers.beside_batches import Image
from helpers.parts_of_steps import part_of
from nvlm.batch import MicroBatch, StepBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.broadcast import next_step_batch
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
OPTIMIZER = [
    "train.optimizer.epsilon=1e-4",
    "train.schedule.warmup_steps=0",
    "stage.freeze=[]",
]

# Results of two optimizer steps, and of the second one on another layout's checkpoint.
STEPS = "two steps, InternViT-300M, shared embeddings"
RESUMED = "resumed, InternViT-300M, shared embeddings"
QWEN3 = "Qwen3's heads, each with norms"
# Fusion -> the case of its gradients; where a step has images in some micro-batches, and in none.
FUSED = {"cross_attention": "NVLM-X", "hybrid": "NVLM-H"}
FUSED_WITHOUT_IMAGES = "NVLM-X, without images"
# Distance of 1, where weights of norms begin, to the next number of fp32.
ROUNDING = torch.finfo(torch.float32).eps
# Run folder of the one process that is the truth.
SINGLE = "single"


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


def with_rows_beside(config: RunConfig) -> list[MicroBatch]:
    """As `with_images`: of several images in packed documents, and of none."""
    return [
        beside_batches.batch(config, 1, [[4, Image(3), 3, Image(1)], [9]], length=104),
        beside_batches.batch(config, 2, [[30], [50]], length=104),
        beside_batches.batch(config, 3, [[8], [Image(2), 5], [2, Image(1)]], length=104),
        beside_batches.batch(config, 4, [[80]], length=104),
    ]


def fused_cases(overrides: list[str], parallel: Parallel) -> dict:
    """Gradients of NVLM-X and NVLM-H."""
    results = {}
    for fusion, name in FUSED.items():
        config = beside_batches.config_of(fusion, *overrides)
        chunks = wrapped(small_model.build_chunks(config, parallel))
        results[name] = losses_and_gradients(chunks, with_rows_beside(config), parallel)
        if fusion == "cross_attention":
            texts = [
                beside_batches.batch(config, seed, [[40], [40]], length=80) for seed in range(5, 9)
            ]
            results[FUSED_WITHOUT_IMAGES] = losses_and_gradients(chunks, texts, parallel)
    return results


def all_cases(
    overrides: list[str], save_to: Path | None = None, resume_from: Path | None = None
) -> dict:
    """Every result of one layout on this process. `overrides` name the layout.

    Args:
        save_to: run folder for a checkpoint of the first of two optimizer steps.
        resume_from: such a folder; the second step is then also taken from there.
    """
    config, small = config_of(*overrides), config_of(*overrides, *SMALL, *OPTIMIZER)
    small = changed(small, {"run": RunSection(name="layout", dir=str(save_to))})
    projector_only = config_of(*overrides, *PROJECTOR_ONLY)
    parallel = initialize(config)
    chunks = wrapped(small_model.build_chunks(config, parallel))
    small_chunks = wrapped(small_model.build_chunks(small, parallel))
    qwen3_chunks = wrapped(
        small_model.build_chunks(config_of(*overrides, *variants.QWEN3), parallel)
    )
    projector_chunks = small_model.build_chunks(projector_only, parallel)
    freeze(projector_chunks, projector_only, parallel)
    projector_chunks = wrapped(projector_chunks)
    results = {
        "with images": losses_and_gradients(chunks, with_images(config), parallel),
        "without images": losses_and_gradients(chunks, without_images(config), parallel),
        "InternViT-300M, shared embeddings": losses_and_gradients(
            small_chunks, with_images(config), parallel
        ),
        QWEN3: losses_and_gradients(qwen3_chunks, with_images(config), parallel),
        "projector only": losses_and_gradients(projector_chunks, with_images(config), parallel),
        STEPS: two_steps(small, parallel, save=save_to is not None),
    }
    if parallel.context_size == 1:  # which NVLM-X and NVLM-H need
        results |= fused_cases(overrides, parallel)
    if resume_from:
        results[RESUMED] = second_step(small, parallel, resume_from)
    return results


def freeze(chunks: list, config: RunConfig, parallel: Parallel) -> None:
    from nvlm.train.freezing import freeze

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


def delivered(micro_batches: list[MicroBatch], parallel: Parallel, shares_tiles: bool) -> StepBatch:
    """This data rank's part of a step, as it comes from the processes that read."""
    mine = micro_batches[parallel.data_rank :: parallel.data_size]
    whole = StepBatch(mine, [], {})
    read = part_of(whole, parallel) if shares_tiles else whole
    step = next_step_batch(iter([read]), parallel, shares_tiles)
    assert step is not None
    return step


def losses_and_gradients(chunks: list, micro_batches: list[MicroBatch], parallel: Parallel) -> dict:
    """One step on Megatron-core's schedule and gradient finalisation, without the optimizer.

    Returns:
        `losses`: micro-batch -> its per-token losses, for those of this data rank (empty on all
        pipeline stages but the last).
        `tensors`: the gradients, a list of (sharded key, layer, slices of the global tensor,
        global shape, values).
    """
    from nvlm.model.tile_parallel import encode_shares
    from nvlm.train.step import run_schedule

    losses: dict[int, Tensor] = {}

    def forward(iterator, chunk):
        here, micro_batch = next(iterator)
        index = numbers[here]

        def loss(per_token: Tensor):
            mask = micro_batch.loss_mask()
            length = micro_batches[index].tokens.shape[1]
            losses[index] = of_whole_row(per_token * mask, micro_batch, length, parallel)
            return (per_token * micro_batch.weights()).sum(), mask.sum().int(), {}

        return chunk(micro_batch), loss

    for chunk in chunks:
        chunk.zero_grad_buffer()
    numbers = range(len(micro_batches))[parallel.data_rank :: parallel.data_size]
    model = chunks[0].module
    step = delivered(micro_batches, parallel, model.shares_tiles)
    run_schedule(forward, chunks, encode_shares(step, model, parallel).micro_batches)
    gradients = _shards(chunks, lambda parameter: parameter.main_grad)
    return {"losses": losses, "tensors": gradients}


def of_whole_row(
    losses: Tensor, micro_batch: MicroBatch, length: int, parallel: Parallel
) -> Tensor:
    """Masked losses [1, t] of what context-parallel ranks have of a row, each in its place."""
    losses, part = losses.detach().clone(), micro_batch.part
    if part is None:
        return losses
    whole = losses.new_zeros(1, length)
    whole.index_add_(1, part.sources, losses)
    torch.distributed.all_reduce(whole, group=parallel.groups.cp)
    return whole


class TwoSteps:
    """A real training of the small model, with all its optimizer, for two steps."""

    batches = (with_images, without_images)

    def __init__(self, config: RunConfig, parallel: Parallel):
        from nvlm.train.training import Training

        chunks = small_model.build_chunks(config, parallel)
        self.start = {id(p): p.detach().clone() for chunk in chunks for p in chunk.parameters()}
        self.training = Training(config, parallel, chunks)
        self.losses: dict[int, Tensor] = {}

    def take(self) -> None:
        """The next step; the second has no images."""
        training = self.training
        config, parallel = training.config, training.parallel
        micro_batches = self.batches[training.step](config)
        step = delivered(micro_batches, parallel, config.parallel.shares_tiles)
        self.taken = training.take_step(step)
        result = self.taken.result
        self.losses[training.step] = torch.tensor([result.loss, result.grad_norm])

    def load(self, run_folder: Path) -> None:
        """Take everything from the checkpoint that another layout wrote, and keep nothing."""
        from nvlm.checkpoint_io import resolve_checkpoint

        with torch.no_grad():
            for chunk in self.training.chunks:
                for parameter in chunk.parameters():
                    parameter.fill_(torch.nan)
        self.training.load(resolve_checkpoint(run_folder))

    def result(self) -> dict:
        """`losses`: step -> (mean loss, gradient norm). `tensors`: how far the weights moved."""
        return {
            "losses": self.losses,
            "tensors": _shards(self.training.chunks, lambda p: p - self.start[id(p)]),
        }


class TwoFusedSteps(TwoSteps):
    """The same of NVLM-X or NVLM-H."""

    batches = (with_rows_beside, with_rows_beside)


def two_steps(
    config: RunConfig, parallel: Parallel, save: bool, kind: type[TwoSteps] = TwoSteps
) -> dict:
    run = kind(config, parallel)
    run.take()
    if save:
        run.training.save()
    run.take()
    return run.result()


def second_step(
    config: RunConfig, parallel: Parallel, resume_from: Path, kind: type[TwoSteps] = TwoSteps
) -> dict:
    """What `two_steps` gives, with the first step read from another layout's checkpoint."""
    run = kind(config, parallel)
    run.load(resume_from)
    run.take()
    return run.result()


def _shards(chunks: list, values_of) -> list[tuple]:
    """`values_of` every trainable parameter, with their place in the global tensors."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from nvlm.checkpoint_shares import sharded_tensors

    shards = []
    for chunk in chunks:
        for name, entry in chunk.module.sharded_state_dict().items():
            if not entry.data.requires_grad:
                continue
            values = values_of(entry.data).detach().clone()
            # A factory of tensors takes the number type of its values.
            dtype = {"dtype": values.dtype} if isinstance(entry, ShardedTensor) else {}
            for shard in sharded_tensors({name: replace(entry, data=values, **dtype)}):
                layer, *expert = shard.global_offset[: shard.prepend_axis_num] or [None]
                slices = shard.global_slice()[shard.prepend_axis_num :]
                shape = shard.global_shape[shard.prepend_axis_num :]
                place = (layer, *expert) if expert else layer
                shards.append((shard.key, place, slices, shape, shard.data))
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


def worst_change(found: dict, expected: dict) -> float:
    """Largest relative error of a tensor's change.

    A step moves a norm's weight by so little that one rounding of the weight, not of the change, is
    1e-3 of it: differences of one rounding do not count there.
    """
    assert found.keys() == expected.keys()
    errors = []
    for key, change in expected.items():
        difference, size = found[key] - change, float(change.norm())
        if key[0].endswith("norm.weight"):
            difference = torch.where(difference.abs() <= ROUNDING, 0, difference)
        error = float(difference.norm()) / size if size else float(difference.abs().max())
        errors.append(error)
    return max(errors)


def main() -> None:
    """Arguments: folder, layouts by name, and which of them checkpoint, each for the next one."""
    go_through_layouts(all_cases, json.loads(sys.argv[3]))


def go_through_layouts(
    cases_of: Callable[[list[str], Path | None, Path | None], dict],
    checkpointing: list[str] | None = None,
) -> None:
    """What a script of such cases does: every layout with the same processes, and a file of each.

    Arguments of the script: folder, and layouts by name.

    Args:
        cases_of: as `all_cases`.
        checkpointing: layouts that go on from the checkpoint of the one before them, the first from
            `SINGLE`'s; None: all of them.
    """
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    resume_from = folder / SINGLE
    for name, overrides in layouts.items():
        print(f"layout {name}", flush=True)
        if checkpointing is None or name in checkpointing:
            results = cases_of(overrides, folder / name, resume_from)
            resume_from = folder / name
        else:
            results = cases_of(overrides, None, None)
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
