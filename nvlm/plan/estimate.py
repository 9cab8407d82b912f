"""The plan: memory, operations, time and messages of a run on so many GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.checks import check_world_size
from nvlm.config.schema import RunConfig
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.communication import Group, group, neighbour_group
from nvlm.plan.operations import Flops, sequence_flops
from nvlm.plan.parts import (
    decoder_layer,
    decoder_layers,
    embedding,
    encoder,
    head,
    num_tokens,
    projector,
)
from nvlm.plan.schedule import Simulated, simulate
from nvlm.plan.seconds import NOTHING, Device, Passes, Seconds, device_of
from nvlm.plan.stage_bytes import CheckpointBytes, StageBytes, checkpoint_bytes, stage_bytes
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
    encoder: float  # of both passes; on the first stage
    head: float  # the same; on the last
    idle: float  # share of the schedule's time without a pass


@dataclass(frozen=True)
class Messages:
    """Bytes and seconds of a step along one axis of the layout, of one GPU."""

    num_bytes: float
    seconds: float
    hidden: float  # share of the seconds that computation hides


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
    def num_checkpoints(self) -> int:
        """That stay on disk at the end."""
        written = -(-self.config.train.steps // self.config.checkpoint.every)
        return min(written, self.config.checkpoint.keep or written)


def make_plan(config: RunConfig, num_gpus: int, assumptions: Assumptions, work: Work) -> Plan:
    """Reckon everything.

    Raises:
        ConfigError: the layout or the batch does not fit so many GPUs.
    """
    data_size = check_world_size(config, num_gpus)
    parallel, train = config.parallel, config.train
    num_micro_batches = train.global_batch_size // (data_size * train.micro_batch_size)
    tensor_group = group(parallel.tensor, 1, assumptions)
    data_group = group(data_size, parallel.tensor, assumptions)
    neighbours = neighbour_group(parallel.pipeline, parallel.tensor * data_size, assumptions)
    device = device_of(config, assumptions, tensor_group)

    parts = _Parts(config, work, device)
    chunks = [parts.chunks(stage) for stage in range(parallel.pipeline)]
    message = neighbours.send_seconds(_hidden_bytes(config, device))
    simulated = _simulate(chunks, num_micro_batches, message)
    memory = [
        stage_bytes(config, stage, data_size, work, assumptions)
        for stage in range(parallel.pipeline)
    ]
    reduced, updated = _after_backward(memory, data_group, config, device)
    exposed = reduced * (1 - assumptions["data_overlap"])
    imbalance = work.imbalance_of(data_size)
    step = simulated.seconds * imbalance + exposed + updated
    flops = sequence_flops(config, work) * train.global_batch_size
    ideal = flops.total / (num_gpus * assumptions["peak_flops"])
    times = _Times(chunks, simulated, num_micro_batches, message)
    return Plan(
        config=config,
        num_gpus=num_gpus,
        data_size=data_size,
        num_micro_batches=num_micro_batches,
        work=work,
        assumptions=assumptions,
        stages=[
            parts.stage_plan(stage, chunks[stage], memory[stage], simulated)
            for stage in range(parallel.pipeline)
        ],
        flops=flops,
        step_seconds=step,
        losses={
            what: seconds / step
            for what, seconds in times.losses(ideal, imbalance, exposed, updated).items()
        },
        messages=times.messages(config, device, neighbours, memory, reduced, assumptions),
        checkpoint=checkpoint_bytes(config),
    )


@dataclass(frozen=True)
class _Chunk:
    """One chunk of a stage, for one micro-batch."""

    passes: Passes
    recomputed: Seconds


class _Parts:
    """The model's parts on one rank, put together chunk by chunk."""

    def __init__(self, config: RunConfig, work: Work, device: Device):
        self._config = config
        num_tiles = work.num_tiles * config.train.micro_batch_size
        self._layer = decoder_layer(config, work, device)
        encoded, self._encoded_again = encoder(config, num_tiles, device)
        self._visual = encoded + projector(config, num_tiles, device)
        self._embedding = embedding(config, device)
        self._head = head(config, device)

    def chunks(self, stage: int) -> list[_Chunk]:
        layers_of_chunks = chunk_layers(self._config, stage)
        chunks = []
        for number, layers in enumerate(layers_of_chunks):
            passes, again = decoder_layers(self._config, len(layers), self._layer)
            if (stage, number) == (0, 0):
                passes = passes + self._visual + self._embedding
                again = again + self._encoded_again
            if self._is_last(stage) and number == len(layers_of_chunks) - 1:
                passes = passes + self._head
            chunks.append(_Chunk(passes, again))
        return chunks

    def _is_last(self, stage: int) -> bool:
        return stage == self._config.parallel.pipeline - 1

    def stage_plan(
        self, stage: int, chunks: list[_Chunk], memory: StageBytes, simulated: Simulated
    ) -> StagePlan:
        passes = _sum([chunk.passes.forward for chunk in chunks])
        visual, last = self._visual, self._head
        return StagePlan(
            layers=chunk_layers(self._config, stage),
            bytes=memory,
            forward=passes,
            backward=_sum([chunk.passes.backward for chunk in chunks]),
            recomputed=_sum([chunk.recomputed for chunk in chunks]),
            encoder=visual.forward.total + visual.backward.total if stage == 0 else 0.0,
            head=last.forward.total + last.backward.total if self._is_last(stage) else 0.0,
            idle=1 - simulated.busy[stage] / simulated.seconds,
        )


def _simulate(chunks: list[list[_Chunk]], num_micro_batches: int, message: float) -> Simulated:
    return simulate(
        [[chunk.passes.forward.total for chunk in stage] for stage in chunks],
        [[chunk.passes.backward.total for chunk in stage] for stage in chunks],
        num_micro_batches,
        message,
    )


def _after_backward(
    memory: list[StageBytes], data_group: Group, config: RunConfig, device: Device
) -> tuple[float, float]:
    """Seconds of messages between data ranks and of the update, on the stage with most of both.

    Gradients are reduce-scattered in fp32, parameters gathered as they are computed with.
    """
    gradients = max(stage.gradients for stage in memory)
    parameters = gradients / 4 * device.number
    reduced = data_group.gather_seconds(gradients) + data_group.gather_seconds(parameters)
    if data_group.size == 1:
        reduced = 0.0
    trained = gradients / 4
    share = trained / data_group.size
    updated = device.moving(share * device.assumptions["optimizer_bytes"])
    # Set to zero before the step; read for the norm, scaled by the number of tokens.
    updated += device.moving(trained * 4 * 3 + share * 4)
    return reduced, updated


class _Times:
    """Where the time of a step goes, of the average GPU."""

    def __init__(
        self,
        chunks: list[list[_Chunk]],
        simulated: Simulated,
        num_micro_batches: int,
        message: float,
    ):
        self._simulated, self._num, self._message = simulated, num_micro_batches, message
        num_stages = len(chunks)
        every = [chunk for stage in chunks for chunk in stage]
        self._again = _sum([c.recomputed for c in every]) * (num_micro_batches / num_stages)
        both = _sum([c.passes.forward + c.passes.backward for c in every])
        self._busy = both * (num_micro_batches / num_stages)
        # The same work, shared equally by all chunks.
        size = len(every)
        forward = _sum([c.passes.forward for c in every]) * (1 / size)
        backward = _sum([c.passes.backward for c in every]) * (1 / size)
        equal = [_Chunk(Passes(forward, backward), NOTHING)] * len(chunks[0])
        self._equal = _simulate([equal] * num_stages, num_micro_batches, message).seconds
        self._no_messages = _simulate([equal] * num_stages, num_micro_batches, 0.0).seconds

    def losses(
        self, ideal: float, imbalance: float, exposed: float, updated: float
    ) -> dict[str, float]:
        """Seconds; what is computed once at the card's peak comes first."""
        busy, again = self._busy, self._again
        products = busy.matmul + busy.attention - again.matmul - again.attention
        return {
            "useful": ideal,
            "products_below_peak": products - ideal,
            "elementwise": busy.elementwise - again.elementwise,
            "recomputed": again.total,
            "tensor_messages": busy.messages - again.messages,
            "launches": busy.launches - again.launches,
            "pipeline_bubble": self._no_messages - busy.total,
            "pipeline_messages": self._equal - self._no_messages,
            "uneven_stages": self._simulated.seconds - self._equal,
            "uneven_data": self._simulated.seconds * (imbalance - 1),
            "data_messages": exposed,
            "optimizer": updated,
        }

    def messages(
        self,
        config: RunConfig,
        device: Device,
        neighbours: Group,
        memory: list[StageBytes],
        reduced: float,
        assumptions: Assumptions,
    ) -> dict[str, Messages]:
        """Of a step: the average GPU's tensor-parallel ones, a stage's others."""
        tensor = self._busy.messages + self._busy.hidden_messages
        bandwidth = device.tensor_group.bandwidth
        # To the next stage and back, from each chunk.
        num_sent = 2 * self._num * config.parallel.virtual_pipeline * (neighbours.size > 1)
        sent = num_sent * self._message
        gradients = max(stage.gradients for stage in memory)
        share = 0.0 if reduced == 0 else gradients * (1 + device.number / 4)
        exposed = max(0.0, self._equal - self._no_messages)
        return {
            "tensor": Messages(
                tensor * bandwidth, tensor, self._busy.hidden_messages / tensor if tensor else 0.0
            ),
            "pipeline": Messages(
                num_sent * _hidden_bytes(config, device),
                sent,
                max(0.0, 1 - exposed / sent) if sent else 0.0,
            ),
            "data": Messages(share, reduced, assumptions["data_overlap"] if reduced else 0.0),
        }


def _hidden_bytes(config: RunConfig, device: Device) -> float:
    """Of the hidden states that one rank sends to the next stage."""
    numbers = num_tokens(config) * config.model.language.hidden_size
    split = config.parallel.tensor if config.parallel.sequence else 1
    return numbers / split * device.number


def _sum(seconds: list[Seconds]) -> Seconds:
    total = NOTHING
    for one in seconds:
        total = total + one
    return total
