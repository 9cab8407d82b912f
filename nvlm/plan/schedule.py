"""Megatron-core's pipeline schedules: the order of passes on each stage, and what they take.

Without virtual stages: 1F1B. With them: the interleaved schedule, whose chunks take turns on as
many micro-batches as there are stages. A pass waits for the message that it needs, never for its
own sends; messages take their time and nothing else of the stage's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Pass(NamedTuple):
    """One chunk's forward or backward pass on one micro-batch."""

    is_forward: bool
    chunk: int
    micro_batch: int


@dataclass(frozen=True)
class Simulated:
    """What a schedule takes; seconds from its first pass."""

    seconds: float  # until the last pass of any stage ends
    busy: list[float]  # of each stage: its passes alone


def stage_order(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> list[Pass]:
    """The passes of a pipeline stage in their order."""
    forwards, backwards = _tables(num_stages, num_chunks, num_micro_batches)
    if num_stages == 1:
        num_ahead = 0
    elif num_chunks == 1:
        num_ahead = num_stages - stage - 1
    else:
        num_ahead = 2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages
    num_ahead = min(num_ahead, len(forwards))
    order = forwards[:num_ahead]
    for forward, backward in zip(forwards[num_ahead:], backwards):
        order += [forward, backward]
    return order + backwards[len(forwards) - num_ahead :]


def _tables(
    num_stages: int, num_chunks: int, num_micro_batches: int
) -> tuple[list[Pass], list[Pass]]:
    """The forward passes of a stage, and its backward passes, each in their order."""
    group = num_stages if num_chunks > 1 else num_micro_batches
    turns = [
        (chunk, micro_batch)
        for first in range(0, num_micro_batches, group)
        for chunk in range(num_chunks)
        for micro_batch in range(first, min(first + group, num_micro_batches))
    ]
    forwards = [Pass(True, chunk, micro_batch) for chunk, micro_batch in turns]
    backwards = [Pass(False, num_chunks - 1 - chunk, micro) for chunk, micro in turns]
    return forwards, backwards


def most_kept(order: Sequence[Pass], chunk_bytes: Sequence[float]) -> float:
    """The most that a stage keeps for backward passes; `chunk_bytes` of one pass of each chunk."""
    kept = most = 0.0
    for one in order:
        kept += chunk_bytes[one.chunk] if one.is_forward else -chunk_bytes[one.chunk]
        most = max(most, kept)
    return most


def simulate(
    forward: Sequence[Sequence[float]],
    backward: Sequence[Sequence[float]],
    num_micro_batches: int,
    message_seconds: float,
) -> Simulated:
    """Run the schedule.

    Args:
        forward, backward: [stage][chunk] seconds of a pass.
        message_seconds: from one stage to the next, whichever they are.
    """
    num_stages, num_chunks = len(forward), len(forward[0])
    last = num_stages * num_chunks - 1
    # Of a pass, by (forward, place of its chunk in the model, micro-batch): when it ended.
    ended: dict[tuple[bool, int, int], float] = {}
    orders = [stage_order(s, num_stages, num_chunks, num_micro_batches) for s in range(num_stages)]
    nexts, clocks = [0] * num_stages, [0.0] * num_stages
    waiting = set(range(num_stages))
    while waiting:
        num_before = len(ended)
        for stage in sorted(waiting):
            order = orders[stage]
            while nexts[stage] < len(order):
                is_forward, chunk, micro_batch = order[nexts[stage]]
                place = chunk * num_stages + stage
                needed = _needed(is_forward, place, last, micro_batch)
                arrived = 0.0
                if needed is not None:
                    if needed not in ended:
                        break
                    # The last chunk's backward pass goes on with what its forward pass left there.
                    is_message = needed[1] != place and num_stages > 1
                    arrived = ended[needed] + is_message * message_seconds
                seconds = (forward if is_forward else backward)[stage][chunk]
                clocks[stage] = max(clocks[stage], arrived) + seconds
                ended[is_forward, place, micro_batch] = clocks[stage]
                nexts[stage] += 1
            else:
                waiting.discard(stage)
        assert not waiting or len(ended) > num_before, "the schedule waits for itself"
    busy = [
        num_micro_batches * (sum(forward[stage]) + sum(backward[stage]))
        for stage in range(num_stages)
    ]
    return Simulated(max(clocks), busy)


def _needed(
    is_forward: bool, place: int, last: int, micro_batch: int
) -> tuple[bool, int, int] | None:
    """The pass that one waits for; None: the first chunk's forward pass."""
    if is_forward:
        return (True, place - 1, micro_batch) if place else None
    return (True, last, micro_batch) if place == last else (False, place + 1, micro_batch)
