"""The plan: memory, operations, time and messages of a run on so many GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.checks import check_world_size
from nvlm.config.schema import RunConfig
from nvlm.config.values import seconds_of
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.chunks import (
    Chunk,
    Parts,
    chunks_of,
    encoded_before,
    hidden_bytes,
    parts_of,
    run,
    total,
)
from nvlm.plan.communication import Group, group, neighbour_group
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.losses import Busy, Messages, busy, losses
from nvlm.plan.operations import Flops, sequence_flops
from nvlm.plan.schedule import Simulated
from nvlm.plan.seconds import Device, Seconds, device_of
from nvlm.plan.stage_bytes import (
    CheckpointBytes,
    StageBytes,
    checkpoint_bytes,
    stage_bytes,
    staged_bytes,
)
from nvlm.plan.work import Work
from nvlm.sizes.pipeline import chunk_layers


@dataclass(frozen=True)
class StagePlan:
    """A pipeline stage; seconds are of a micro-batch on one of its GPUs."""

    layers: list[list[int]]  # of the decoder, by chunk
    bytes: StageBytes
    forward: Seconds
    backward: Seconds
    recomputed: Seconds  # of the backward pass
    visual: float  # encoder and projector, both passes; on the first stage
    head: float  # the same; on the last
    idle: float  # share of the schedule's time without a pass


@dataclass(frozen=True)
class Plan:
    """What a run will need; see `make_plan`. Sizes in bytes, times in seconds."""

    config: RunConfig
    num_gpus: int
    data_size: int
    num_micro_batches: int
    work: Work
    assumptions: Assumptions
    stages: list[StagePlan]
    flops: Flops  # of a step
    step_seconds: float
    losses: dict[str, float]  # what takes the step's time -> its share; together 1
    messages: dict[str, Messages]  # tensor, pipeline, data
    checkpoint: CheckpointBytes

    @property
    def peak_bytes(self) -> int:
        return max(stage.bytes.peak for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.assumptions["memory_bytes"]

    @property
    def mfu(self) -> float:
        """Operations of the training by what the cards' peak would allow in its time."""
        peak = self.assumptions["peak_flops"] * self.num_gpus
        return self.flops.total / (peak * self.step_seconds)

    @property
    def sequences_per_second(self) -> float:
        return self.config.train.global_batch_size / self.step_seconds

    @property
    def samples_per_second(self) -> float:
        return self.sequences_per_second * self.work.num_samples

    @property
    def tokens_per_second(self) -> float:
        """Of samples, padding not counted."""
        return self.sequences_per_second * self.work.num_tokens

    @property
    def hours(self) -> float:
        """Of all steps, without checkpoints and starts."""
        return self.step_seconds * self.config.train.steps / 3600

    @property
    def staged_bytes(self) -> int:
        """On the host, of the process with most: kept for saves in the background."""
        if not self.config.checkpoint.background:
            return 0
        return max(staged_bytes(self.config, stage.bytes, self.data_size) for stage in self.stages)

    @property
    def num_checkpoints(self) -> int:
        """That stay on disk at the end."""
        steps, wanted = self.config.train.steps, self.config.checkpoint
        seconds = seconds_of(wanted.every)
        if seconds is None:
            every = int(wanted.every)
        else:
            every = max(1, round(seconds / self.step_seconds))
        forever = set(range(wanted.keep_every or steps, steps, wanted.keep_every or steps))
        written = sorted({*range(every, steps, every), *forever, steps})
        newest = written[-wanted.keep :] if wanted.keep else written
        return len(forever.union(newest))


def make_plan(
    config: RunConfig,
    num_gpus: int,
    assumptions: Assumptions,
    work: Work,
    teacher: RunConfig | None = None,
) -> Plan:
    """Reckon everything; of a teacher, given as its checkpoint's configuration, its memory.

    Raises:
        ConfigError: the layout or the batch does not fit so many GPUs.
    """
    data_size = check_world_size(config, num_gpus)
    given, config = config, with_stage_layers(config)
    parallel, train = config.parallel, config.train
    num_sequences = train.global_batch_size // data_size
    num_micro_batches = num_sequences // train.micro_batch_size
    device = device_of(config, assumptions)
    num_copies = data_size * parallel.context  # of a stage's weights
    data_group = group(num_copies, parallel.tensor, assumptions)
    neighbours = neighbour_group(parallel.pipeline, parallel.tensor * num_copies, assumptions)

    parts = parts_of(config, work, device)
    stages = [chunks_of(config, stage, parts) for stage in range(parallel.pipeline)]
    message = neighbours.send_seconds(hidden_bytes(config, work, device))
    simulated = run(stages, num_micro_batches, message)
    encoded = encoded_before(config, work, device, neighbours, num_sequences)
    memory = _memory(config, data_size, assumptions, work, teacher)
    data, updated = _after_backward(memory, stages, data_group, device)
    exposed = data.seconds * (1 - data.hidden)
    uneven = (simulated.seconds + encoded.total) * (work.imbalance_of(data_size) - 1)
    step = simulated.seconds + encoded.total + uneven + exposed + updated
    flops = sequence_flops(config, work) * train.global_batch_size
    found = busy(stages, simulated, num_micro_batches, message, encoded)
    ideal = flops.total / (num_gpus * assumptions["peak_flops"])
    seconds = losses(found, ideal, encoded, uneven, exposed, updated)
    sent = 2 * num_micro_batches * parallel.virtual_pipeline * (neighbours.size > 1)
    return Plan(
        config=given,
        num_gpus=num_gpus,
        data_size=data_size,
        num_micro_batches=num_micro_batches,
        work=work,
        assumptions=assumptions,
        stages=[
            _stage_plan(config, stage, chunks, parts, held, simulated)
            for stage, (chunks, held) in enumerate(zip(stages, memory, strict=True))
        ],
        flops=flops,
        step_seconds=step,
        losses={what: one / step for what, one in seconds.items()},
        messages={
            "tensor": _tensor_messages(found, device),
            "pipeline": _pipeline_messages(
                found, sent, message, hidden_bytes(config, work, device)
            ),
            "data": data,
        },
        checkpoint=checkpoint_bytes(config),
    )


def least_seconds(config: RunConfig, num_gpus: int, assumptions: Assumptions, work: Work) -> float:
    """What a step takes at least: the slowest stage's passes, without any waiting."""
    data_size = num_gpus // config.parallel.model_parallel_size
    num_sequences = config.train.global_batch_size // data_size
    device = device_of(config, assumptions)
    neighbours = neighbour_group(1, 1, assumptions)
    parts = parts_of(config, work, device)
    slowest = max(
        sum(chunk.passes.total for chunk in chunks_of(config, stage, parts))
        for stage in range(config.parallel.pipeline)
    )
    encoded = encoded_before(config, work, device, neighbours, num_sequences)
    return slowest * num_sequences / config.train.micro_batch_size + encoded.share.total


def _memory(
    config: RunConfig,
    data_size: int,
    assumptions: Assumptions,
    work: Work,
    teacher: RunConfig | None,
) -> list[StageBytes]:
    return [
        stage_bytes(config, stage, data_size, work, assumptions, teacher=teacher)
        for stage in range(config.parallel.pipeline)
    ]


def _stage_plan(
    config: RunConfig,
    stage: int,
    chunks: list[Chunk],
    parts: Parts,
    memory: StageBytes,
    simulated: Simulated,
) -> StagePlan:
    is_last = stage == config.parallel.pipeline - 1
    return StagePlan(
        layers=chunk_layers(config, stage),
        bytes=memory,
        forward=total([chunk.passes.forward for chunk in chunks]),
        backward=total([chunk.passes.backward for chunk in chunks]),
        recomputed=total([chunk.recomputed for chunk in chunks]),
        visual=parts.visual.total if stage == 0 else 0.0,
        head=parts.head.total if is_last else 0.0,
        idle=1 - simulated.busy[stage] / simulated.seconds,
    )


def _after_backward(
    memory: list[StageBytes], stages: list[list[Chunk]], data_group: Group, device: Device
) -> tuple[Messages, float]:
    """Messages between data ranks, and seconds of the update, on the stage with most of both.

    Gradients are reduce-scattered in fp32, parameters gathered as they are computed with: where
    that is overlapped, behind the last backward and the next forward pass of a micro-batch.
    """
    gradients = max(stage.gradients for stage in memory)
    trained = gradients / 4
    parameters = trained * device.number
    messages = Messages(0.0, 0.0, 0.0)
    if data_group.size > 1:
        reduced, gathered = map(data_group.gather_seconds, (gradients, parameters))
        forward = min(total([c.passes.forward for c in chunks]).total for chunks in stages)
        backward = min(total([c.passes.backward for c in chunks]).total for chunks in stages)
        hidden = device.assumptions["data_overlap"]
        hidden *= min(reduced, backward) + min(gathered, forward)
        seconds = reduced + gathered
        messages = Messages(gradients + parameters, seconds, hidden / seconds)
    share = trained / data_group.size
    updated = device.moving(share * device.assumptions["optimizer_bytes"])
    # Set to zero before the step; read for the norm, scaled by the number of tokens.
    return messages, updated + device.moving(trained * 4 * 3 + share * 4)


def _tensor_messages(found: Busy, device: Device) -> Messages:
    seconds = found.passes.messages + found.passes.hidden_messages
    hidden = found.passes.hidden_messages / seconds if seconds else 0.0
    return Messages(seconds * device.tensor_group.bandwidth, seconds, hidden)


def _pipeline_messages(found: Busy, num_sent: int, seconds: float, num_bytes: float) -> Messages:
    if not num_sent:
        return Messages(0.0, 0.0, 0.0)
    hidden = 1 - found.pipeline_messages / (num_sent * seconds)
    return Messages(num_sent * num_bytes, num_sent * seconds, min(1.0, max(0.0, hidden)))
