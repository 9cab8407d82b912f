"""Hugging Face folders -> a checkpoint that training starts from, without building the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nvlm import platform
from nvlm.checkpoint_files import write_origins
from nvlm.checkpoint_io import is_checkpoint, on_main_rank, replace_checkpoint
from nvlm.config.changed import changed
from nvlm.config.schema import RunConfig
from nvlm.convert.blocks import Buffer, as_dtype, row_blocks
from nvlm.convert.hf.architectures import notes
from nvlm.convert.hf.folder import HfFolder
from nvlm.convert.hf.sources import (
    Source,
    open_parts,
    open_released,
    projector_epsilon_difference,
)
from nvlm.convert.megatron.entries import Entry, in_file_order, is_stack, source_rows
from nvlm.convert.megatron.writer import Chunk, write_chunks
from nvlm.convert.rules import COPY, Rule, num_parameters, to_megatron
from nvlm.convert.session import (
    Stopwatch,
    check_free_space,
    check_target,
    conversion_processes,
    print_note,
    progress_bar,
)
from nvlm.convert.tables.projector import projector_rules
from nvlm.convert.tables.qwen2 import cross_attention_rules
from nvlm.dtypes import DTYPES
from nvlm.errors import ConvertError
from nvlm.rows import Parameter, Place
from nvlm.sizes.alignment import stage_rows
from nvlm.sizes.parameters import PROJECTOR


def convert_from_hf(
    vision: str | Path | Sequence[str | Path],
    language: str | Path,
    config: RunConfig,
    out: str | Path,
) -> Path:
    """Write checkpoint folder `out` from two Hugging Face folders; returns `out`.

    The projector is new, and so are the cross-attention of NVLM-X and NVLM-H and learned tile tags:
    random with their `init_std`, a function of `train.seed`. Under torchrun every process calls
    this and each converts its share; the checkpoint does not depend on the number of processes, nor
    on `config.parallel`.

    Args:
        vision: folder of an InternViT (`InternVisionModel`), heads padded or not, or of timm's
            model; of encoders side by side one for each, in their order. This and the next may be
            ids of the hub (`nvlm.hub`); the checkpoint says which commit it was.
        language: folder of a Qwen2 or Qwen3, a Llama or Mistral (`...ForCausalLM`).
        config: its `model` section must describe both; weights get `train.precision`.
        out: a new folder, or a checkpoint to be replaced once the new one is whole.

    Raises:
        ConvertError: a folder is missing, not whole, quantised, or of another architecture or size;
            tensors are missing, extra, of another shape or not finite; `out` is something else, a
            folder that is read from, or its disk has no room. Nothing is written then.
        CheckpointError: `out` cannot be written.
    """
    watch = Stopwatch()
    sources = open_parts(vision, language, config.model)
    return _convert(sources, config, Path(out), watch)


def convert_from_nvlm(nvlm: str | Path, config: RunConfig, out: str | Path) -> Path:
    """Write checkpoint folder `out` from an NVLM-D, X or H; returns `out`.

    As `convert_from_hf`, with the folder's projector.

    Args:
        nvlm: folder as NVLM-D-72B was released, or an export of this program; of the fusion that
            `config` has.
    """
    watch = Stopwatch()
    sources = open_released(nvlm, config.model)
    converted = _convert(sources, config, Path(out), watch)
    difference = projector_epsilon_difference(sources[0].folder, config.model)
    if difference:
        print_note(difference)
    return converted


def _convert(sources: list[Source], config: RunConfig, out: Path, watch: Stopwatch) -> Path:
    check_target(out, [source.folder.path for source in sources])
    if out.exists() and not is_checkpoint(out):
        raise ConvertError(f"{out}: exists and is not a checkpoint: remove it or name another")
    dtype = DTYPES[config.train.precision].torch
    chunks = [chunk for source in sources for chunk in _source_chunks(source, dtype)]
    rules = [rule for source in sources for rule in source.rules]
    if not any(rule.parameter.component == PROJECTOR for rule in rules):
        new = [*projector_rules(config.model), *cross_attention_rules(config.model)]
        chunks += [
            random_chunk(rule.parameter, place, config, dtype)
            for rule in new
            for place in rule.parameter.places()
        ]
        rules += new
    for row in stage_rows(config):
        chunks.append(random_chunk(row, Place(), config, dtype))
        rules.append(Rule(row, {}, COPY))
    num_bytes = sum(chunk.num_bytes for chunk in chunks)
    assert num_bytes == num_parameters(rules) * dtype.itemsize, "chunks do not cover the tensors"
    check_free_space(out, num_bytes)

    platform.current()  # Megatron-core, which completes the checkpoint, is imported after it
    with conversion_processes() as processes:
        mine = processes.share(chunks, lambda chunk: chunk.num_bytes)

        def write(folder: Path) -> None:
            total = sum(chunk.num_bytes for chunk in mine)
            with progress_bar("Converting tensors", total) as advance:
                write_chunks(folder, mine, advance)
            origins = {source.option[2:]: source.origin.as_fields() for source in sources}
            on_main_rank(lambda: write_origins(folder, origins))

        # Whatever the run will have beside them: these are the weights of the model alone.
        replace_checkpoint(out, write, changed(config, {"stage.adapters": {}}))
        num_tensors = sum(rule.parameter.num_tensors for rule in rules)
        watch.print_summary(f"Wrote {out}", num_tensors, num_bytes, processes)
    for source in sources:
        for note in notes(source.folder, config, source.part):
            print_note(note)
    return out


def _source_chunks(source: Source, dtype: torch.dtype) -> Iterator[Chunk]:
    """Blocks of rows where a tensor is copied or stacked, else whole tensors."""
    read_buffer = Buffer()
    for entry in in_file_order(source.rules):
        if is_stack(entry[0]):
            yield from _row_chunks(entry, source.folder, dtype, read_buffer)
        else:
            rule, place = entry
            make = partial(_joined, rule, place, source.folder, dtype)
            yield stacked_chunk(rule.parameter, place, 0, rule.shape[0], dtype, make)


def _row_chunks(
    entry: Entry, folder: HfFolder, dtype: torch.dtype, buffer: Buffer
) -> Iterator[Chunk]:
    rule, place = entry
    for name, (_, first, _) in zip(rule.names(place), source_rows(rule), strict=True):
        for start, stop in row_blocks(folder.shape(name), dtype):
            make = partial(_rows, folder, name, start, stop, dtype, buffer)
            rows = (first + start, first + stop)
            yield stacked_chunk(rule.parameter, place, *rows, dtype, make)


def random_chunk(row: Parameter, place: Place, config: RunConfig, dtype: torch.dtype) -> Chunk:
    """A tensor as training would draw it."""

    def make() -> Tensor:
        from nvlm.model.parts.initialize import initial_tensor

        return initial_tensor(config.train.seed, row, place).to(dtype)

    return stacked_chunk(row, place, 0, row.shape[0], dtype, make)


def stacked_chunk(
    row: Parameter,
    place: Place,
    start: int,
    stop: int,
    dtype: torch.dtype,
    make: Callable[[], Tensor],
) -> Chunk:
    """Rows `start` to `stop` of the tensor of `row` at `place`, which `make` returns."""
    stack, rest = row.stack_shape, row.shape[1:]
    sizes = (*(1 for _ in stack), stop - start, *rest)
    offsets = (*row.offsets(place), start, *(0 for _ in rest))
    return Chunk(row.key, (*stack, *row.shape), offsets, sizes, dtype, lambda: make().view(sizes))


def _rows(
    folder: HfFolder, name: str, start: int, stop: int, dtype: torch.dtype, buffer: Buffer
) -> Tensor:
    return as_dtype(folder.read_rows(name, start, stop), dtype, buffer)


def _joined(rule: Rule, place: Place, folder: HfFolder, dtype: torch.dtype) -> Tensor:
    return to_megatron(rule, place, folder.read, folder.path).to(dtype)
