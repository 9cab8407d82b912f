"""`nvlm train --replay FILE`: a step that failed, taken again on one process, module by module.

Nothing is trained, and nothing of the run is written over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from nvlm.batch import StepBatch
from nvlm.checkpoint_io import is_checkpoint
from nvlm.config.changed import changed
from nvlm.config.compose import validate
from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.data.loading.training_data import open_training_data
from nvlm.errors import TrainingError
from nvlm.model.parts.dropout import begin_step
from nvlm.model.parts.names import named_modules, named_parameters
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import Parallel, initialize, leaving_groups, world_size_from_environment
from nvlm.printing import listed, new_console
from nvlm.tables import print_table
from nvlm.train.freezing import freeze
from nvlm.train.loss_weights import normalize_loss_weights
from nvlm.train.optim import wrap_data_parallel
from nvlm.train.replay_file import Failed, read_failed
from nvlm.train.step import forward_step, run_schedule
from nvlm.train.teacher import Teacher, find_teacher
from nvlm.train.training import build_with_weights

_ROWS_BEFORE = 12
_ROWS_AFTER = 3
_MOST_NAMES = 8
_MOST_KEYS = 40


@dataclass(frozen=True)
class _Seen:
    """An output of a module, or the gradient of it, in the order in which they came."""

    micro_batch: int
    module: str
    largest: float  # of its finite values, without signs
    num_bad: int
    num_values: int


def replay(path: Path) -> None:
    """Take the step of `path` again and say where its numbers stop being finite.

    Raises:
        TrainingError: the file is none, several processes were started, its weights are gone, its
            data are others by now, or the step is finite.
    """
    if world_size_from_environment() > 1:
        raise TrainingError("--replay takes one process: start it without torchrun")
    failed = read_failed(path)
    config = _on_one_process(failed, path)
    console = new_console(soft_wrap=True)
    weights, are_of_step = _weights(failed, path)
    said = failed.message.splitlines()[0]
    console.print(f"{path}: {said}; trained as {failed.layout}", markup=False, highlight=False)
    origin = "those of that step" if are_of_step else f"older: of step {failed.checkpoint_step}"
    console.print(f"weights of {weights}: {origin}", markup=False, highlight=False)
    with leaving_groups():
        parallel = initialize(config)
        batch = _batch(config, failed, parallel)
        found = _take(config, batch, weights, parallel, failed.step, console)
    if not found:
        why = f"suspect the hardware, or what is special to {failed.layout}"
        if not are_of_step:
            why = "the weights are older than the step's, so this says little"
        raise TrainingError(
            f"{path}: not reproduced: loss and gradients of step {failed.step} are finite on this "
            f"process; {why}"
        )
    console.print(f"reproduced: {found}", markup=False, highlight=False)


def _on_one_process(failed: Failed, path: Path) -> RunConfig:
    config = validate(failed.config, where=str(path))
    return changed(config, {"parallel": ParallelConfig(), "data.num_workers": 0}, str(path))


def _weights(failed: Failed, path: Path) -> tuple[Path, bool]:
    """The checkpoint to load, and whether its weights are those that the step was taken with."""
    if failed.weights is not None and is_checkpoint(path.parent / failed.weights):
        return path.parent / failed.weights, True
    if failed.checkpoint is not None and is_checkpoint(Path(failed.checkpoint)):
        return Path(failed.checkpoint), False
    beside = path.parent / (failed.weights or path.stem)
    raise TrainingError(
        f"{path}: its weights are gone: neither {beside} nor "
        f"{failed.checkpoint or 'a checkpoint of the run'} is there"
    )


def _batch(config: RunConfig, failed: Failed, parallel: Parallel) -> StepBatch:
    """The whole global step, as this one data rank's."""
    data = open_training_data(config, failed.data_state)
    batch = next_step_batch(data.batches(0, 1), parallel, shares_tiles=False)
    keys = [micro_batch.sample_keys for micro_batch in batch.micro_batches] if batch else []
    if batch is None or keys != failed.samples:
        now, then = (listed(chain(*of_step), _MOST_KEYS) for of_step in (keys, failed.samples))
        raise TrainingError(
            f"step {failed.step} has other samples by now: {now}; it had {then}: are the shards "
            "those of then?"
        )
    return batch


def _take(
    config: RunConfig,
    batch: StepBatch,
    weights: Path,
    parallel: Parallel,
    step: int,
    console: Console,
) -> str:
    """What is not finite, in words; empty: all is."""
    bare = build_with_weights(config, parallel, weights)
    freeze(bare, config, parallel)
    spoilt = _bad([(name, p.detach()) for name, p in named_parameters(bare)])
    if spoilt:
        console.print(f"parameters that are not finite: {spoilt}", markup=False, highlight=False)
    chunks = wrap_data_parallel(bare, parallel)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    checkpoint = find_teacher(config)
    teacher = None if checkpoint is None else Teacher(config, parallel, checkpoint)
    micro_batches = normalize_loss_weights(batch.micro_batches, parallel)
    outputs: list[_Seen] = []
    gradients: list[_Seen] = []
    with _looking(bare[0], outputs, gradients) as numbered:
        forward = numbered(partial(forward_step, num_sources=len(batch.epochs), teacher=teacher))
        begin_step(config, parallel, step)
        reports = run_schedule(forward, chunks, micro_batches)
    losses = [float(loss_sum) for loss_sum, *_ in reports]
    bad_losses = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad_losses:
        first = bad_losses[0]
        _print_around(console, [seen for seen in outputs if seen.micro_batch == first], "output")
        keys = listed(batch.micro_batches[first].sample_keys, _MOST_KEYS)
        return f"the loss of micro-batch {first} of the step is {losses[first]}; samples {keys}"
    trained = [(name, p) for name, p in named_parameters(bare) if p.requires_grad]
    tensors = [(name, p.main_grad) for name, p in trained]
    bad_gradients = _bad(tensors[::-1])  # from the loss backwards
    if not bad_gradients:
        norm = float(torch.stack([torch.linalg.vector_norm(t) for _, t in tensors]).norm())
        return "" if math.isfinite(norm) else "gradients are finite, and their norm overflows"
    guilty = next((seen.micro_batch for seen in gradients if seen.num_bad), None)
    _print_around(console, [s for s in gradients if s.micro_batch == guilty], "output's gradient")
    return f"losses are finite, and gradients are not: {bad_gradients}"


def _bad(tensors: list[tuple[str, Tensor]]) -> str:
    bad = [name for name, tensor in tensors if not bool(tensor.isfinite().all())]
    return listed(bad, _MOST_NAMES) if bad else ""


@contextmanager
def _looking(
    model: nn.Module, outputs: list[_Seen], gradients: list[_Seen]
) -> Iterator[Callable[[Callable], Callable]]:
    """Note every module's outputs and their gradients; yields what numbers the micro-batches."""
    micro_batch = -1

    def numbered(forward: Callable) -> Callable:
        def next_one(data_iterator: Iterator, chunk: nn.Module):
            nonlocal micro_batch
            micro_batch += 1
            return forward(data_iterator, chunk)

        return next_one

    def look(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        number = micro_batch
        for tensor in output if isinstance(output, tuple | list) else [output]:
            # Linear layers hand on their bias, for others to add.
            is_value = isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
            if not is_value or not tensor.is_floating_point():
                continue
            outputs.append(_seen(number, name, tensor.detach()))
            if tensor.requires_grad:
                tensor.register_hook(lambda g: gradients.append(_seen(number, name, g)))

    handles = [
        module.register_forward_hook(partial(look, name)) for name, module in named_modules(model)
    ]
    try:
        yield numbered
    finally:
        for handle in handles:
            handle.remove()


def _seen(micro_batch: int, name: str, tensor: Tensor) -> _Seen:
    is_finite = tensor.isfinite()
    values = torch.where(is_finite, tensor.abs(), 0.0)
    largest = float(values.max()) if tensor.numel() else 0.0
    return _Seen(micro_batch, name, largest, int((~is_finite).sum()), tensor.numel())


def _print_around(console: Console, seen: list[_Seen], what: str) -> None:
    """The modules up to the first whose values are not finite, and some behind it."""
    bad = next((index for index, one in enumerate(seen) if one.num_bad), None)
    if bad is None:
        console.print(f"every {what} is finite; what is made of them is not", highlight=False)
        return
    start = max(0, bad - _ROWS_BEFORE)
    rows = seen[start : bad + 1 + _ROWS_AFTER]
    print_table(
        console,
        f"micro-batch {seen[bad].micro_batch}, in the order of the pass"
        + (f", from the {start + 1}th module" if start else ""),
        ["module", f"largest {what}", "not finite"],
        [
            [one.module, f"{one.largest:.3e}", f"{one.num_bad:,} of {one.num_values:,}"]
            for one in rows
        ],
        styles=["bold red" if one is seen[bad] else None for one in rows],
    )
    console.print(f"first in {seen[bad].module}", markup=False, highlight=False)
