"""Run by torchrun with two processes: trainings with and without overlap of data parallelism.

Arguments: folder, in which each rank leaves what its trainings came to; the names of those, of
`CASES`. The second data rank never sees a tile, the first in some micro-batches only. Then the
bytes that a process of a tensor-parallel pair keeps of a micro-batch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from helpers import beside_batches, small_model
from helpers.beside_batches import Image
from helpers.kept import kept_by_autograd
from nvlm import platform
from nvlm.batch import MicroBatch, StepBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import Parallel, initialize, shut_down
from nvlm.sizes.activations import stage_activations

CASES = {
    "encoder frozen": ["stage.freeze=['vision_model.*']"],
    # In the second step the first data rank has an image that no token sees.
    "NVLM-X, cross-attention and projector train": [
        *beside_batches.SMALL["cross_attention"],
        "stage.freeze=['vision_model.*','language_model.*','!*cross_att*']",
    ],
    "all but projector frozen": ["stage.freeze=['vision_model.*','language_model.*']"],
    "nothing frozen": ["stage.freeze=[]"],
    "all but adapters frozen": ["stage.adapters={'*.linear_*.weight': {rank: 96}}"],
    "encoder frozen, PP2 x VPP2": [
        "stage.freeze=['vision_model.*']",
        "model.language.num_layers=4",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
    ],
    "NVLM-H, encoder frozen, PP2 x VPP2": [
        *beside_batches.SMALL["hybrid"],
        "stage.freeze=['vision_model.*']",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
    ],
}
NUM_STEPS = 3
# Of each micro-batch of a step, by data rank. The last one of a step reduces the gradients.
TILES = [[(2, 0), (0, 0)], [(0, 1), (0, 0)], [(0, 0), (0, 0)]]
WITH_KEPT = ["parallel.tensor=2", "parallel.sequence=true", "train.precision=bf16"]


def batch_of(config: RunConfig, step: int, parallel: Parallel) -> StepBatch:
    tiles = TILES[step][parallel.data_rank]
    micro_batches = [
        batch_with(config, 10 * step + 2 * parallel.data_rank + index, num_tiles)
        for index, num_tiles in enumerate(tiles)
    ]
    return StepBatch(micro_batches, [], {})


def batch_with(config: RunConfig, seed: int, num_tiles: int) -> MicroBatch:
    if config.model.fusion == "decoder_only":
        return small_model.batch(config, seed, [60, 20], num_tiles)
    image = [Image(num_tiles)] if num_tiles else []
    batch = beside_batches.batch(config, seed, [[9, *image, 5], [11]], length=80)
    if num_tiles != 1 or batch.beside is None:
        return batch
    return replace(batch, beside=replace(batch.beside, sights=()))


def train(config: RunConfig, parallel: Parallel, overlap: bool) -> dict:
    """Three steps; the third again, from the checkpoint of the second."""
    from nvlm.train.optim import bare, gather_parameters
    from nvlm.train.training import Training
    from nvlm.train.validation import held_out_losses, looking_at

    training = Training(config, parallel, small_model.build_chunks(config, parallel))
    chunks = cast("Any", training.chunks)
    counts = [len(buffer.buckets) for chunk in chunks for buffer in chunk.buffers]
    results: dict = {"most buckets": max(counts, default=0)}
    saved = None
    for step in range(NUM_STEPS):
        result = training.take_step(batch_of(config, step, parallel)).result
        results[f"step {step}"] = torch.tensor([result.loss, result.grad_norm])
        # Without overlap nothing looks at the model, so that a difference would show.
        if overlap:
            held_out = replace(batch_of(config, 0, parallel), epochs={"source": 0.0})
            with looking_at(training):
                held_out_losses(training, iter([with_source(held_out)]))
        if step == NUM_STEPS - 2:
            saved = training.save()
    gather_parameters(training.chunks)
    results["parameters"] = weights_of(bare(training.chunks))

    assert saved is not None
    again = Training(config, parallel, small_model.build_chunks(config, parallel))
    again.load(saved)
    again.take_step(batch_of(config, NUM_STEPS - 1, parallel))
    gather_parameters(again.chunks)
    results["resumed"] = weights_of(bare(again.chunks))
    return results


def with_source(step: StepBatch) -> StepBatch:
    micro_batches = [
        replace(batch, source_numbers=torch.zeros_like(batch.tokens))
        for batch in step.micro_batches
    ]
    return replace(step, micro_batches=micro_batches)


def weights_of(chunks: Sequence[nn.Module]) -> dict[str, Tensor]:
    from nvlm.model.parts.names import named_parameters

    return {name: parameter.detach().clone() for name, parameter in named_parameters(chunks)}


def kept_bytes() -> tuple[int, int]:
    """What this process keeps, and what was reckoned."""
    config = small_model.small_config(*WITH_KEPT, "stage.sequence_length=384")
    model = small_model.build(config, initialize(config))
    model.vision_model.requires_grad_(False)
    with kept_by_autograd(model) as kept:
        model(small_model.batch(config, 1, [300, 84], num_tiles=2))
    return kept.num_bytes, stage_activations(config, 0, num_tiles=2).total


def main() -> None:
    platform.current()
    from megatron.core import distributed

    from nvlm.train import training

    # Several buckets, of which one holds projector and embedding, as large models have them.
    distributed.DistributedDataParallelConfig = partial(
        distributed.DistributedDataParallelConfig, bucket_size=200_000
    )
    folder, results = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        config = small_model.small_config(*CASES[name], "train.global_batch_size=4")
        parallel = initialize(config)
        for overlap in (False, True):
            training._overlaps = lambda config, overlap=overlap: overlap
            place = RunSection(name="overlap", dir=str(folder / f"{name} {overlap}"))
            results[name, overlap] = train(changed(config, {"run": place}), parallel, overlap)
            print(name, overlap, flush=True)
    results["kept"] = kept_bytes()
    torch.save(results, folder / f"{sys.argv[2]} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
