"""Are two models equal: the tensors bit by bit, and what is computed with them?

Of Hugging Face folders and checkpoints in any combination.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from rich.table import Column, Table
from torch import Tensor

from nvlm.checkpoint_io import is_checkpoint, on_every_rank, read_config, resolve_checkpoint
from nvlm.convert.blocks import row_blocks
from nvlm.convert.hf.architectures import folder_problems, folders_differ
from nvlm.convert.hf.folder import CONFIG_FILE, HfFolder
from nvlm.convert.hf.sources import folder_rules
from nvlm.convert.megatron.tensors import CheckpointTensors
from nvlm.convert.session import Processes, Stopwatch, conversion_processes, progress_bar
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.errors import CheckpointError, ConvertError
from nvlm.printing import new_console, say

Tensors = HfFolder | CheckpointTensors

# Bit patterns of a type are compared as integers of its size: zeros of both signs differ.
_INTEGERS = {2: torch.int16, 4: torch.int32}
# Settings of a model that change no output of given tensors.
_WITHOUT_EFFECT = {"init_std", "layer_scale_init", "max_position_embeddings"}
# Rows of the printed table.
_MOST_SHOWN = 100


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same on both sides, and in what way."""

    name: str
    what: str


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    num_equal: tensors with equal bits.
    num_widened: of these, how many have another dtype on each side: equal in the wider one.
    num_bytes: of the tensors of A.
    """

    num_equal: int
    num_widened: int
    num_bytes: int
    differences: list[Difference]

    @property
    def is_equal(self) -> bool:
        return not self.differences


def verify(a: str | Path, b: str | Path) -> Report:
    """Compare two models under their Hugging Face names; under torchrun every process calls this.

    Each of `a` and `b` is a Hugging Face folder, a checkpoint, or a run folder (its latest
    checkpoint). A checkpoint is seen through the rules of conversion: beside a folder of only an
    InternViT or a language model, that part of it is compared. Where the dtypes differ, values are
    compared in the wider one, which holds those of the other exactly.

    Raises:
        CheckpointError, ConvertError: the two cannot be compared: one is neither, is not whole, is
            of an unknown architecture, or holds NaN.
    """
    watch = Stopwatch()
    left, right = _open(Path(a), Path(b))
    left_names, right_names = _own_names(left, right), _own_names(right, left)
    if not set(left_names) & set(right_names):
        raise ConvertError(
            f"{a} and {b} have no tensor of the same name: one has {left_names[0]}, the other "
            f"{right_names[0]}; a folder of a part can be compared with a checkpoint of the whole"
        )
    with conversion_processes() as processes:
        settings = [Difference(CONFIG_FILE, what) for what in _settings_differ(left, right)]
        report = _compare_all(left, right, left_names, right_names, processes)
        report = replace(report, differences=[*settings, *report.differences])
        watch.print_summary(f"Compared {a} and {b}", len(left_names), report.num_bytes, processes)
    return report


def print_report(report: Report) -> None:
    """The tensors that differ, as a table, and how many there are of each kind."""
    console = new_console()
    if report.differences:
        table = Table(Column("tensor", overflow="fold"), Column("difference", overflow="fold"))
        for difference in report.differences[:_MOST_SHOWN]:
            table.add_row(difference.name, difference.what)
        console.print(table)
    hidden = len(report.differences) - _MOST_SHOWN
    if hidden > 0:
        say(f"... and {hidden} more")
    widened = f" ({report.num_widened} of them of another dtype)" if report.num_widened else ""
    different = [entry for entry in report.differences if entry.name != CONFIG_FILE]
    also = f"; {CONFIG_FILE} differs" if len(different) < len(report.differences) else ""
    say(f"{report.num_equal} tensors equal{widened}, {len(different)} different{also}")


def _open(a: Path, b: Path) -> tuple[Tensors, Tensors]:
    left, right = _folder_or_checkpoint(a), _folder_or_checkpoint(b)
    return _tensors(left, right), _tensors(right, left)


def _folder_or_checkpoint(path: Path) -> HfFolder | Path:
    if (path / CONFIG_FILE).is_file() and not is_checkpoint(path):
        return HfFolder(path)
    try:
        return resolve_checkpoint(path)
    except CheckpointError as error:
        message = f"{error}; nor a Hugging Face folder, which has a {CONFIG_FILE}"
        raise ConvertError(message) from None


def _tensors(side: HfFolder | Path, other: HfFolder | Path) -> Tensors:
    if isinstance(side, HfFolder):
        return side
    model = read_config(side).model
    rules = folder_rules(other, model) if isinstance(other, HfFolder) else export_rules(model)
    return CheckpointTensors(side, rules)


def _settings_differ(left: Tensors, right: Tensors) -> list[str]:
    """What the two compute differently with equal tensors, a clause each."""
    if isinstance(left, HfFolder) and isinstance(right, HfFolder):
        return folders_differ(left, right)
    if isinstance(left, HfFolder):
        return folder_problems(left, read_config(right.path).model)
    if isinstance(right, HfFolder):
        return folder_problems(right, read_config(left.path).model)
    x, y = (read_config(side.path).model.model_dump() for side in (left, right))
    kinds = [
        f"model.{section}.kind is {x[section]['kind']} in A, {y[section]['kind']} in B"
        for section in ("vision", "connector", "language")
        if x[section].get("kind") != y[section].get("kind")
    ]
    if kinds:
        return kinds
    fusions = [
        f"model.{key} is {x[key]!r} in A, {y[key]!r} in B"
        for key in ("fusion", "cross_attention")
        if x[key] != y[key]
    ]
    return fusions + [
        f"model.{section}.{key} is {x[section][key]!r} in A, {y[section][key]!r} in B"
        for section in ("vision", "connector", "language")
        for key in x[section]
        if key not in _WITHOUT_EFFECT and x[section][key] != y[section][key]
    ]


def _own_names(side: Tensors, other: Tensors) -> list[str]:
    """The names on one side, the second name of a tied tensor only where the other side has it."""
    if not isinstance(side, HfFolder):
        return side.names()
    others = set(other.names())
    return [name for name in side.names() if name not in side.tied or name in others]


def _compare_all(
    left: Tensors,
    right: Tensors,
    left_names: list[str],
    right_names: list[str],
    processes: Processes,
) -> Report:
    common = set(left_names) & set(right_names)

    def num_bytes(name: str) -> int:
        return prod(left.shape(name)) * left.dtype(name).itemsize

    # A checkpoint's names in its own order: tensors of one rule follow each other.
    order = right_names if isinstance(right, CheckpointTensors) else left_names
    mine = processes.share([name for name in order if name in common], num_bytes)
    found: dict[str, str] = {}

    def compare_mine() -> None:
        with progress_bar("Comparing tensors", sum(map(num_bytes, mine))) as advance:
            for name in mine:
                what = _difference(left, right, name)
                if what:
                    found[name] = what
                advance(num_bytes(name))

    on_every_rank(compare_mine)
    gathered: list[dict[str, str]] = [{}] * processes.count
    dist.all_gather_object(gathered, found)
    different = {name: what for part in gathered for name, what in part.items()}
    equal = common - different.keys()

    only_left = [Difference(n, _only("A", left, n)) for n in left_names if n not in common]
    only_right = [Difference(n, _only("B", right, n)) for n in right_names if n not in common]
    differing = [Difference(n, different[n]) for n in left_names if n in different]
    return Report(
        num_equal=len(equal),
        num_widened=sum(left.dtype(name) != right.dtype(name) for name in equal),
        num_bytes=sum(map(num_bytes, left_names)),
        differences=[*only_left, *only_right, *differing],
    )


def _only(side: str, tensors: Tensors, name: str) -> str:
    return f"only in {side}: {list(tensors.shape(name))} {_spelled(tensors.dtype(name))}"


def _difference(left: Tensors, right: Tensors, name: str) -> str | None:
    """What differs in tensor `name` of both sides; None where it is equal."""
    left_shape, right_shape = left.shape(name), right.shape(name)
    if left_shape != right_shape:
        return f"shape {list(left_shape)} in A, {list(right_shape)} in B"
    # Nothing stored is read twice if the coarser division is taken.
    blocks = min(left.row_blocks(name), right.row_blocks(name), key=len)
    num_different, largest = 0, 0.0
    for start, stop in blocks:
        left_rows = left.read_rows(name, start, stop)
        right_rows = right.read_rows(name, start, stop)
        for first, last in row_blocks(tuple(left_rows.shape), torch.float32):
            x, y = _same_type(left_rows[first:last], right_rows[first:last])
            unequal = int((_bits(x) != _bits(y)).sum())
            if unequal:
                num_different += unequal
                largest = max(largest, float((x.double() - y.double()).abs().max()))
    if not num_different:
        return None
    what = f"{num_different:,} of {prod(left_shape):,} values, by up to {largest:.3g}"
    if left.dtype(name) != right.dtype(name):
        what += f"; {_spelled(left.dtype(name))} in A, {_spelled(right.dtype(name))} in B"
    return what


def _same_type(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == y.dtype:
        return x, y
    return x.float(), y.float()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(_INTEGERS[tensor.itemsize])


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
