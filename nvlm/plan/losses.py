"""Where the time of a step goes: from the cards' peak to what is reached, nothing left over."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.plan.chunks import Chunk, Encoded, run, total
from nvlm.plan.schedule import Simulated
from nvlm.plan.seconds import NOTHING, Passes, Seconds


@dataclass(frozen=True)
class Messages:
    """Bytes and seconds of a step along one axis of the layout, of one GPU."""

    num_bytes: float
    seconds: float
    hidden: float  # share of the seconds that computation hides


@dataclass(frozen=True)
class Busy:
    """Of the average GPU in a step: its passes, and what its stages wait for."""

    passes: Seconds
    recomputed: Seconds  # of them
    bubble: float  # of stages that take the same time, without messages
    pipeline_messages: float  # what these add
    uneven_stages: float  # what the stages' own times add


def busy(
    stages: list[list[Chunk]],
    simulated: Simulated,
    num_micro_batches: int,
    message_seconds: float,
    encoded: Encoded,
) -> Busy:
    """Compares the schedule with one whose chunks all take the same time, with messages and
    without."""
    chunks = [chunk for stage in stages for chunk in stage]
    forward = total([chunk.passes.forward for chunk in chunks])
    backward = total([chunk.passes.backward for chunk in chunks])
    each = 1 / len(chunks)
    equal = [Chunk(Passes(forward * each, backward * each), NOTHING)] * len(stages[0])
    equals = [equal] * len(stages)
    with_messages = run(equals, num_micro_batches, message_seconds).seconds
    without = run(equals, num_micro_batches, 0.0).seconds
    per_gpu = num_micro_batches / len(stages)
    passes = (forward + backward) * per_gpu
    return Busy(
        passes=passes + encoded.share,
        recomputed=total([chunk.recomputed for chunk in chunks]) * per_gpu,
        bubble=without - passes.total,
        pipeline_messages=with_messages - without,
        uneven_stages=simulated.seconds - with_messages,
    )


def losses(
    found: Busy, ideal: float, encoded: Encoded, uneven_data: float, exposed: float, updated: float
) -> dict[str, float]:
    """Seconds by what takes them; together a step.

    Args:
        ideal: what the needed operations take at the cards' peak.
        uneven_data: what the costliest data rank takes more than the mean.
        exposed: messages between data ranks that nothing hides.
        updated: the optimizer.
    """
    passes, again = found.passes, found.recomputed
    products = passes.matmul + passes.attention - again.matmul - again.attention
    return {
        "useful": ideal,
        "products_below_peak": products - ideal,
        "elementwise": passes.elementwise - again.elementwise,
        "recomputed": again.total,
        "tensor_messages": passes.messages - again.messages,
        "launches": passes.launches - again.launches,
        "pipeline_bubble": found.bubble,
        "pipeline_messages": found.pipeline_messages,
        "uneven_stages": found.uneven_stages,
        "feature_messages": encoded.messages,
        "uneven_data": uneven_data,
        "data_messages": exposed,
        "optimizer": updated,
    }
