"""Adapters that peft saved, beside the model of a checkpoint: what `to_peft` writes, read back.

Megatron-core keeps several of Hugging Face's matrices in one, whose adapter has a rank and a scale
for all of them. Where peft has adapters beside some of them only (of queries and values, say), the
others get A and B of zeros, whose gradients are zero too: they stay without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nvlm.checkpoint_io import read_config
from nvlm.config.adapters import AdapterConfig
from nvlm.config.changed import changed
from nvlm.config.schema import ParallelConfig
from nvlm.convert.adapters.factors import Factors
from nvlm.convert.adapters.peft_folder import Module, PeftFolder, describe
from nvlm.convert.adapters.to_peft import is_by_rows, modules_of
from nvlm.convert.blocks import Buffer, row_blocks
from nvlm.convert.from_hf import stacked_chunk
from nvlm.convert.megatron.writer import Chunk
from nvlm.convert.rewrite import Rewrite
from nvlm.convert.rules import Rule, to_megatron
from nvlm.convert.session import print_note
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.errors import ConvertError
from nvlm.hub import folder_of
from nvlm.rows import Parameter, Place
from nvlm.sizes.adapters import (
    LORA_A,
    LORA_B,
    MAGNITUDE,
    Adapter,
    adapters_of,
    can_be_adapted,
    run_parameter_table,
)
from nvlm.sizes.alignment import stage_rows
from nvlm.sizes.parameters import COMPONENTS, PROJECTOR, parameter_table

# The adapters of Hugging Face's matrices that one of Megatron-core's is made of; None: none.
Parts = list[Module | None]


def convert_from_peft(checkpoint: str | Path, peft: str | Path, out: str | Path) -> Path:
    """Write checkpoint folder `out`, the model of `checkpoint` with adapters; returns `out`.

    Adapters get the data type of the checkpoint. Its `stage.adapters` are made from the folder; a
    run with these goes on from it. Under torchrun every process calls this and writes its share.

    Args:
        checkpoint: a checkpoint without adapters, or a run folder (its latest checkpoint).
        peft: a folder that peft saved of an export of the checkpoint, or `nvlm convert adapters`
            wrote; or an id of the hub.
        out: a new folder, or a checkpoint to be replaced once the new one is whole.

    Raises:
        CheckpointError: there is no whole checkpoint, or `out` cannot be written.
        ConvertError: the checkpoint has adapters; the folder is not whole, or has what nvlm's
            adapters cannot be. Nothing is written then.
        DataError: the folder cannot be had from the hub.
    """
    rewrite = Rewrite(checkpoint, out)
    config = read_config(rewrite.checkpoint)
    if config.stage.adapters:
        raise ConvertError(
            f"{rewrite.checkpoint}: has adapters: put them into the model (`nvlm convert merge`), "
            "or name the checkpoint that its run started from"
        )
    table = [*parameter_table(config.model), *stage_rows(config)]
    rewrite.check_has([row.key for row in table])
    origin = folder_of(peft, "--peft")
    folder = PeftFolder(origin.path)
    rules = export_rules(config.model)
    found = _parts_by_matrix(folder, rules)
    settings = {matrix: _settings(folder, *parts) for matrix, parts in found.items()}
    projector = _projector(folder, rules)
    trained = {key.partition(".")[0] for key in [*projector, *(key for key, _ in found)]}
    changes = {
        "stage.adapters": _patterns(table, settings),
        "stage.freeze": [f"{part}.*" for part in COMPONENTS if part not in trained],
        # The layout of the run that wrote it says nothing of weights.
        "parallel": ParallelConfig(),
    }
    config = changed(config, changes, str(folder.path))
    factors = [
        _factors(folder, adapter, *found[adapter.matrix.key, adapter.place])
        for adapter in adapters_of(config)
    ]
    chunks = [
        *_model_chunks(rewrite, table, projector),
        *_adapter_chunks(rewrite, factors),
    ]
    if folder.dropout:
        print_note(
            f"{folder.path}: trained with dropout {folder.dropout:g}, which adapters have not here"
        )
    origins = {"base": {"folder": str(rewrite.checkpoint)}, "--peft": origin.as_fields()}
    return rewrite.write(chunks, run_parameter_table(config), config, "Adding adapters", origins)


def _parts_by_matrix(
    folder: PeftFolder, rules: Sequence[Rule]
) -> dict[tuple[str, Place], tuple[Rule, Parts]]:
    """Of each matrix of Megatron-core's that has an adapter; every module is of one."""
    left = dict(folder.modules)
    found: dict[tuple[str, Place], tuple[Rule, Parts]] = {}
    for rule in rules:
        for place in rule.parameter.places() if can_be_adapted(rule.parameter) else []:
            parts = [left.pop(module, None) for module in modules_of(rule, place)]
            if any(parts):
                found[rule.key, place] = rule, parts
    if left:
        raise ConvertError(
            f"{folder.path}: has adapters of {describe(left)}, beside which nvlm has none: "
            "they are beside the linear layers of an export's decoder, vision model and mlp1"
        )
    if not found:
        raise ConvertError(f"{folder.path}: has no adapters")
    return found


def _settings(folder: PeftFolder, rule: Rule, parts: Parts) -> AdapterConfig:
    """Of all parts: their rank and scale, which have to be one."""
    modules = [module for module in parts if module is not None]
    first = modules[0]
    for module in modules[1:]:
        if (module.rank, module.alpha) != (first.rank, first.alpha):
            raise ConvertError(
                f"{folder.path}: {first.name} has rank {first.rank} and alpha {first.alpha:g}, "
                f"{module.name} {module.rank} and {module.alpha:g}: Megatron-core has both in one "
                "matrix, whose adapter has one rank and one alpha"
            )
    dora = first.magnitude is not None
    if dora and len(modules) < len(parts):
        raise ConvertError(
            f"{folder.path}: use_dora beside {first.name}, but not beside all that Megatron-core "
            "has in one matrix with it, whose rows' lengths would train too"
        )
    return AdapterConfig(rank=first.rank, alpha=first.alpha, dora=dora)


def _patterns(
    table: Sequence[Parameter], settings: Mapping[tuple[str, Place], AdapterConfig]
) -> dict[str, AdapterConfig]:
    """`stage.adapters`: a pattern for each kind of matrix where its layers have the same."""
    patterns: dict[str, AdapterConfig] = {}
    for row in table:
        of_row = [settings.get((row.key, place)) for place in row.places()]
        first = of_row[0]
        if first is not None and all(one == first for one in of_row):
            patterns[row.key.replace(".layers.", ".layers.*.", 1)] = first
            continue
        for place, one in zip(row.places(), of_row, strict=True):
            if one is not None:
                patterns[row.name(place)] = one
    return patterns


def _factors(folder: PeftFolder, adapter: Adapter, rule: Rule, parts: Parts) -> Factors:
    """The inverse of `peft_tensors`."""
    rank, a, b, lengths = adapter.settings.rank, [], [], []
    for part, (outputs, inputs) in zip(parts, rule.sources.values(), strict=True):
        a.append(torch.zeros(rank, inputs) if part is None else part.a)
        b.append(torch.zeros(outputs, rank) if part is None else part.b)
        if part is not None and part.magnitude is not None:
            lengths.append(part.magnitude)
        if (len(b[-1]), a[-1].shape[1]) != (outputs, inputs):
            raise ConvertError(
                f"{folder.path}: {modules_of(rule, adapter.place)[len(a) - 1]} has A "
                f"{list(a[-1].shape)} and B {list(b[-1].shape)} beside a matrix {[outputs, inputs]}"
            )
    if adapter.num_parts < len(a):
        if None in parts or any(not torch.equal(a[0], one) for one in a[1:]):
            raise ConvertError(
                f"{folder.path}: {' and '.join(modules_of(rule, adapter.place))} do not have one "
                "A, as their adapter has here"
            )
        a = a[:1]
    join = rule.layout.join
    found = Factors(
        adapter,
        torch.cat(a) if is_by_rows(rule) else join(a),
        join(b) if is_by_rows(rule) else b[0],
        (join(lengths) if is_by_rows(rule) else lengths[0]) if lengths else None,
    )
    _check_zero_heads(folder, found)
    return found


def _check_zero_heads(folder: PeftFolder, factors: Factors) -> None:
    """Stored heads beyond the real ones add nothing: rows of B are zero, columns of A meet zeros.

    peft draws such columns like all others; here they are zero, so that they stay.
    """
    rows = {row.key.rpartition(".")[2]: row.zero_heads for row in factors.adapter.parameters()}
    if (zero := rows[LORA_A]) is not None:
        zero.of(factors.a).zero_()
    if (zero := rows[LORA_B]) is not None and bool(zero.of(factors.b).any()):
        raise ConvertError(
            f"{folder.path}: the adapter of {factors.adapter.module} adds to stored heads beyond "
            "model.vision.num_attention_heads, which must stay zero"
        )


def _projector(folder: PeftFolder, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Key -> what peft saved whole; empty where it did not.

    Raises:
        ConvertError: not all of it is there or fits, or the folder has other tensors.
    """
    own = [rule for rule in rules if rule.parameter.component == PROJECTOR]
    expected = {name: shape for rule in own for name, shape in rule.sources.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in folder.others.items()}
    if other := [name for name in shapes if name not in expected]:
        raise ConvertError(
            f"{folder.path}: {describe(other)}: neither an adapter's nor the projector's, which a "
            "checkpoint has no place for"
        )
    if shapes and shapes != expected:
        wrong = [name for name, shape in expected.items() if shapes.get(name) != shape]
        raise ConvertError(
            f"{folder.path}: of the projector, which it has, {describe(wrong)} is missing or of "
            "another shape"
        )
    if not shapes:
        return {}
    return {rule.key: to_megatron(rule, Place(), folder.others.__getitem__) for rule in own}


def _model_chunks(
    rewrite: Rewrite, table: Sequence[Parameter], projector: Mapping[str, Tensor]
) -> Iterator[Chunk]:
    buffer = Buffer()
    for row in table:
        dtype = rewrite.reader.dtype(row.key)
        if row.key in projector:
            make = partial(projector[row.key].to, dtype)
            yield stacked_chunk(row, Place(), 0, row.shape[0], dtype, make)
            continue
        for place in row.places():
            for start, stop in row_blocks(row.shape, dtype):
                make = partial(rewrite.reader.read, row, place, start, stop, buffer)
                yield stacked_chunk(row, place, start, stop, dtype, make)


def _adapter_chunks(rewrite: Rewrite, factors: Sequence[Factors]) -> Iterator[Chunk]:
    for found in factors:
        dtype = rewrite.reader.dtype(found.adapter.matrix.key)
        tensors = {LORA_A: found.a, LORA_B: found.b, MAGNITUDE: found.magnitude}
        for row in found.adapter.parameters():
            tensor = tensors[row.key.rpartition(".")[2]]
            assert tensor is not None and tensor.shape == row.shape, row
            yield stacked_chunk(row, Place(), 0, row.shape[0], dtype, partial(tensor.to, dtype))
