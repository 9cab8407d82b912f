"""Where a loss, a gradient or a parameter that is not finite comes from.

Nothing here runs in a normal step. When a step fails, all processes come here together: each looks
at its own part of the model, the findings are exchanged, and every process raises the same error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvlm.batch import MicroBatch
from nvlm.errors import TrainingError
from nvlm.model.parts.names import named_modules, named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.printing import listed

# Longer lists are cut, with the number of what was left out.
_MOST_NAMES = 8
_MOST_KEYS = 40
_UNHARMED = (
    "nothing of this step was saved: the run's last checkpoint and its metrics are as they were"
)


@dataclass(frozen=True)
class _Place:
    """One process, as a message names it."""

    rank: int
    pipeline_rank: int
    data_rank: int

    def __str__(self) -> str:
        return f"rank {self.rank} (pipeline stage {self.pipeline_rank})"


@dataclass(frozen=True)
class _BadTensor:
    """A parameter (or its gradient) with values that are not finite; `order` is the model's."""

    order: tuple[int, int]
    name: str
    place: _Place
    num_bad: int
    num_values: int

    def __str__(self) -> str:
        return f"{self.name} on {self.place}: {self.num_bad} of {self.num_values} values"


@dataclass(frozen=True)
class _BadOutput:
    """A module's output that is not finite; the smallest `order` is the first in the forward."""

    order: tuple[int, int, int]
    module: str
    place: _Place
    micro_batch: int


@dataclass
class _Report:
    """What one process found."""

    place: _Place
    sample_keys: list[list[str]]  # of each micro-batch
    parameters: list[_BadTensor] = field(default_factory=list)
    outputs: list[_BadOutput] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of each micro-batch; on last stages


def explain_loss(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[MicroBatch],
    losses: list[float],
    forward_again: Callable[[Callable[[int, int], None]], None],
    step: int,
    parallel: Parallel,
) -> TrainingError:
    """The error that says where a loss that is not finite began. All processes call this.

    Looks for such parameters, then runs the step's forward passes once more (without gradients)
    and notes the first module whose output is not finite, in each micro-batch that has such a loss.

    Args:
        chunks: this process's bare model chunks, as they were in the failed forward.
        losses: summed loss of each micro-batch, on the last pipeline stage; else empty.
        forward_again: runs all micro-batches through the schedule, forward only, and calls its
            argument with the number of the chunk and of the micro-batch before each pass.
    """
    place = _place(parallel)
    with _watch_outputs(chunks, parallel) as watch, torch.no_grad():
        forward_again(watch.begin)
    reports = _exchange(
        _Report(
            place,
            [micro_batch.sample_keys for micro_batch in micro_batches],
            parameters=_bad_tensors(chunks, parallel, lambda parameter: parameter),
            outputs=[*watch.first.values(), *_bad_features(micro_batches, place)],
            losses=losses,
        )
    )
    guilty = {
        (report.place.data_rank, number): loss
        for report in reports
        for number, loss in enumerate(report.losses)
        if not math.isfinite(loss)
    }
    places = sorted(guilty)
    lines = [f"step {step}: the loss is {guilty[places[0]]}"]
    if bad := _by_name(reports):
        lines.append(f"parameters that are not finite: {listed(bad, _MOST_NAMES)}")
    for data_rank, number in places[:_MOST_NAMES]:
        lines.append(_micro_batch_line(reports, data_rank, number))
    if len(places) > _MOST_NAMES:
        lines.append(f"and {len(places) - _MOST_NAMES} more micro-batches")
    return TrainingError("\n  ".join([*lines, _UNHARMED]))


def explain_gradient_norm(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[MicroBatch],
    grad_norm: float | None,
    step: int,
    parallel: Parallel,
) -> TrainingError:
    """The error for a gradient norm that is not finite where the loss was. All call this.

    Each data rank's gradient buffers hold the reduced gradients of its own share and its own
    contributions to the others', so what is not finite is found on one of them.
    """
    reports = _exchange(
        _Report(
            _place(parallel),
            [micro_batch.sample_keys for micro_batch in micro_batches],
            parameters=_bad_tensors(chunks, parallel, lambda p: getattr(p, "main_grad", None)),
        )
    )
    # Gradients flow from the loss backwards: the last in the model's order was spoilt first.
    bad = _by_name(reports)[::-1]
    found = listed(bad, _MOST_NAMES) if bad else "none; only their norm overflows"
    keys_of_rank = {report.place.data_rank: report.sample_keys for report in reports}
    keys = [key for of_rank in keys_of_rank.values() for batch in of_rank for key in batch]
    lines = [
        f"step {step}: the gradient norm is {grad_norm} and the loss is finite",
        f"gradients that are not finite, from the loss backwards: {found}",
        f"samples of the step: {listed(keys, _MOST_KEYS)}",
        _UNHARMED,
    ]
    return TrainingError("\n  ".join(lines))


def check_parameters(chunks: Sequence[nn.Module], step: int, parallel: Parallel) -> None:
    """Refuse to save parameters that are not finite, as an update can make them. All call this.

    Raises:
        TrainingError: the same on every process; names the parameters.
    """
    bad = _bad_tensors(chunks, parallel, lambda parameter: parameter)
    check_written(_by_name(_exchange(_Report(_place(parallel), [], bad))), step)


def check_written(bad: Sequence[object], step: int) -> None:
    """Raise `TrainingError` where there are parameters, `bad`, that are not finite."""
    if bad:
        raise TrainingError(
            f"step {step}: after the optimizer's update, parameters are not finite: "
            f"{listed(bad, _MOST_NAMES)}\n  {_UNHARMED}"
        )


class _Watch:
    """Forward hooks that note, per micro-batch, the first output that is not finite."""

    def __init__(self, parallel: Parallel):
        self.first: dict[int, _BadOutput] = {}
        self._parallel = parallel
        self._chunk = self._micro_batch = self._call = 0

    def begin(self, chunk: int, micro_batch: int) -> None:
        self._chunk, self._micro_batch, self._call = chunk, micro_batch, 0

    def hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            self._call += 1
            if self._micro_batch in self.first or all(map(_is_finite, _tensors(output))):
                return
            position = _position(self._chunk, self._parallel)
            self.first[self._micro_batch] = _BadOutput(
                (position, self._call, self._parallel.rank),
                name,
                _place(self._parallel),
                self._micro_batch,
            )

        return look


@contextmanager
def _watch_outputs(chunks: Sequence[nn.Module], parallel: Parallel) -> Iterator[_Watch]:
    watch = _Watch(parallel)
    handles = [
        module.register_forward_hook(watch.hook(name))
        for chunk in chunks
        for name, module in named_modules(chunk)
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _micro_batch_line(reports: list[_Report], data_rank: int, number: int) -> str:
    outputs = [
        output
        for report in reports
        for output in report.outputs
        if report.place.data_rank == data_rank and output.micro_batch == number
    ]
    if outputs:
        first = min(outputs, key=lambda output: output.order)
        found = f"first in the output of {first.module} on {first.place}"
    else:
        found = (
            "finite in every module when run again, so it does not repeat: suspect the hardware "
            "of this data rank"
        )
    keys = next(r.sample_keys[number] for r in reports if r.place.data_rank == data_rank)
    return (
        f"micro-batch {number} of data rank {data_rank}: {found}; "
        f"samples {listed(keys, _MOST_KEYS)}"
    )


def _by_name(reports: list[_Report]) -> list[_BadTensor]:
    """All bad tensors in the model's order; of one that several processes hold, the first."""
    found = sorted(
        (bad for report in reports for bad in report.parameters),
        key=lambda bad: (bad.order, bad.place.rank),
    )
    return list({bad.name: bad for bad in reversed(found)}.values())[::-1]


def _bad_tensors(
    chunks: Sequence[nn.Module], parallel: Parallel, tensor_of: Callable[[nn.Parameter], object]
) -> list[_BadTensor]:
    found = []
    for number, chunk in enumerate(chunks):
        for index, (name, parameter) in enumerate(named_parameters([chunk])):
            tensor = tensor_of(parameter)
            if not isinstance(tensor, Tensor) or _is_finite(tensor):
                continue
            num_bad = int((~tensor.isfinite()).sum())
            order = (_position(number, parallel), index)
            found.append(_BadTensor(order, name, _place(parallel), num_bad, tensor.numel()))
    return found


def _bad_features(micro_batches: Sequence[MicroBatch], place: _Place) -> list[_BadOutput]:
    """What was encoded before the schedule, and so before any of its modules."""
    return [
        _BadOutput((-1, 0, place.rank), "vision_model", place, number)
        for number, micro_batch in enumerate(micro_batches)
        if micro_batch.features is not None and not _is_finite(micro_batch.features)
    ]


def _position(chunk: int, parallel: Parallel) -> int:
    """Of a chunk in the whole model: chunks are dealt to the pipeline stages in turn."""
    return chunk * parallel.pipeline_size + parallel.pipeline_rank


def _place(parallel: Parallel) -> _Place:
    return _Place(parallel.rank, parallel.pipeline_rank, parallel.data_rank)


def _exchange(report: _Report) -> list[_Report]:
    reports: list = [None] * dist.get_world_size()
    dist.all_gather_object(reports, report)
    return reports


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
