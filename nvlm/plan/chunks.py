"""What the chunks of each pipeline stage take for a micro-batch, of the model's parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nvlm.config.schema import RunConfig
from nvlm.plan.communication import Group, group
from nvlm.plan.parts import (
    cross_attention,
    decoder_layer,
    decoder_layers,
    embedding,
    encoder,
    head,
    num_tokens,
    projector,
)
from nvlm.plan.schedule import Simulated, simulate
from nvlm.plan.seconds import NOTHING, Device, Passes, Seconds
from nvlm.plan.work import Work
from nvlm.sizes.pipeline import chunk_layers


@dataclass(frozen=True)
class Chunk:
    """One chunk of a stage, for one micro-batch; `recomputed` is of its backward pass."""

    passes: Passes
    recomputed: Seconds


@dataclass(frozen=True)
class Parts:
    """What the parts take on one rank, for one micro-batch."""

    layer: Passes
    visual: Passes  # encoder and projector, on the first stage
    visual_again: Seconds
    embedding: Passes
    head: Passes


def parts_of(config: RunConfig, work: Work, device: Device) -> Parts:
    num_tiles = work.num_tiles * config.train.micro_batch_size / config.parallel.context
    visual, again = projector(config, num_tiles, device), NOTHING
    if not config.parallel.shares_tiles:
        encoded, again = encoder(config, num_tiles, device)
        visual = encoded + visual
    return Parts(
        layer=decoder_layer(config, work, device) + cross_attention(config, work, device),
        visual=visual,
        visual_again=again,
        embedding=embedding(config, device),
        head=head(config, device),
    )


def chunks_of(config: RunConfig, stage: int, parts: Parts) -> list[Chunk]:
    """Of one stage."""
    chunks, layers_of_chunks = [], chunk_layers(config, stage)
    for number, layers in enumerate(layers_of_chunks):
        passes, again = decoder_layers(config, len(layers), parts.layer)
        if (stage, number) == (0, 0):
            passes = passes + parts.visual + parts.embedding
            again = again + parts.visual_again
        if stage == config.parallel.pipeline - 1 and number == len(layers_of_chunks) - 1:
            passes = passes + parts.head
        chunks.append(Chunk(passes, again))
    return chunks


def run(stages: list[list[Chunk]], num_micro_batches: int, message_seconds: float) -> Simulated:
    """The schedule of a step."""
    return simulate(
        [[chunk.passes.forward.total for chunk in stage] for stage in stages],
        [[chunk.passes.backward.total for chunk in stage] for stage in stages],
        num_micro_batches,
        message_seconds,
    )


@dataclass(frozen=True)
class Encoded:
    """What encoding takes before the schedule, where all ranks share a step's tiles."""

    share: Seconds = NOTHING  # of each rank
    messages: float = 0.0  # features to the first stage

    @property
    def total(self) -> float:
        return self.share.total + self.messages


def encoded_before(
    config: RunConfig, work: Work, device: Device, neighbours: Group, num_sequences: float
) -> Encoded:
    """`num_sequences` of a model replica in a step."""
    parallel, vision = config.parallel, config.model.vision
    if not parallel.shares_tiles:
        return Encoded()
    num_tiles = work.num_tiles * num_sequences
    alone = replace(device, tensor_group=group(1, 1, device.assumptions))
    share = math.ceil(num_tiles / parallel.model_parallel_size)
    passes, _ = encoder(config, share, alone)
    features = num_tiles * vision.num_patches * vision.feature_size * device.number
    # Those of other stages come from their ranks, and the first stage's share what they have.
    messages = device.tensor_group.gather_seconds(features)
    if parallel.pipeline > 1:
        others = features * (parallel.pipeline - 1) / parallel.pipeline
        messages += neighbours.send_seconds(others)
    return Encoded(passes.forward, messages)


def hidden_bytes(config: RunConfig, work: Work, device: Device) -> float:
    """Of what one rank sends to the next stage: hidden states, and of NVLM-X and NVLM-H the row
    beside them, of levels in turn all of these."""
    model, rows = config.model, num_tokens(config)
    if model.fusion != "decoder_only":
        tiles = work.num_tiles * config.train.micro_batch_size
        rows += round(tiles * model.num_tokens_per_tile) * model.num_levels_beside
    split = config.parallel.tensor if config.parallel.sequence else 1
    return rows * model.language.hidden_size / split * device.number


def total(seconds: list[Seconds]) -> Seconds:
    added = NOTHING
    for one in seconds:
        added = added + one
    return added
