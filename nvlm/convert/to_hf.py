"""A checkpoint -> a Hugging Face folder in the layout of the released NVLM-D-72B."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nvlm.checkpoint_io import read_config, read_progress, resolve_checkpoint
from nvlm.config.schema import RunConfig
from nvlm.convert.checkpoint_reader import CheckpointReader
from nvlm.convert.export_config import (
    check_tile_tags,
    generation_config,
    model_config,
    preprocessor_config,
    serving_differences,
)
from nvlm.convert.hf_folder import CONFIG_FILE, parse_size, write_safetensors
from nvlm.convert.model_card import model_card
from nvlm.convert.rules import Rule, expected_tensors, export_rules, num_parameters, to_hugging_face
from nvlm.convert.session import progress_bar
from nvlm.errors import ConvertError
from nvlm.parallel.groups import world_size_from_environment

MODELING_FILES = (
    "configuration_intern_vit.py",
    "configuration_nvlm_d.py",
    "image_tiling.py",
    "modeling_intern_vit.py",
    "modeling_nvlm_d.py",
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURN_END = "<|im_end|>"


def convert_to_hf(
    checkpoint: str | Path,
    out: str | Path,
    dtype: str | None = None,
    shard_size: str = "5GB",
) -> Path:
    """Write `out` from a checkpoint that any layout wrote; returns `out`. Run it as one process.

    Tensors are read a layer at a time; no more than a shard and a layer are in memory.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its latest checkpoint).
        out: a new folder, or an earlier export, replaced once the new one is whole.
        dtype: `fp32` or `bf16`; None: as in the checkpoint.
        shard_size: largest safetensors file, such as `5GB`.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConvertError: it lacks tensors or has them in another shape, holds NaN, its tokenizer is
            gone, `out` is something else, or `dtype` or `shard_size` are not understood.
    """
    out = Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise ConvertError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    shard_bytes = parse_size(shard_size)
    if world_size_from_environment() > 1:
        raise ConvertError("convert to-hf runs as one process: start it without torchrun")
    if out.exists() and not _is_export(out):
        raise ConvertError(f"{out}: exists and is not an earlier export: remove it or name another")
    checkpoint = resolve_checkpoint(checkpoint)
    config = read_config(checkpoint)
    check_tile_tags(config)
    tokenizer = _load_tokenizer(config)

    rules = export_rules(config.model)
    reader = CheckpointReader(checkpoint)
    _check_tensors(reader, rules)
    out_dtype = DTYPES[dtype] if dtype else _common_dtype(reader, rules)
    beside = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True)
    try:
        total = len(expected_tensors(rules))
        with progress_bar("Writing Hugging Face tensors", total) as advance:
            tensors = _read_tensors(reader, rules, out_dtype)
            write_safetensors(beside, tensors, shard_bytes, advance)
        _write_other_files(beside, config, read_progress(checkpoint), tokenizer, out_dtype)
        _put_in_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for difference in serving_differences(config):
        Console(stderr=True).print(f"[yellow]Note:[/yellow] {difference}.")
    return out


def _check_tensors(reader: CheckpointReader, rules: list[Rule]) -> None:
    """Raise `ConvertError` listing the tensors that are missing or of another shape."""
    problems = []
    for rule in rules:
        expected = rule.shape if rule.num_layers is None else (rule.num_layers, *rule.shape)
        if rule.key not in reader:
            problems.append(f"{rule.key} {list(expected)} is missing")
        elif reader.shape(rule.key) != expected:
            problems.append(
                f"{rule.key} is {list(reader.shape(rule.key))}, expected {list(expected)}"
            )
    if problems:
        raise ConvertError(
            f"{reader.checkpoint}: tensors do not fit its config: {'; '.join(problems)}"
        )


def _common_dtype(reader: CheckpointReader, rules: list[Rule]) -> torch.dtype:
    found = sorted({reader.dtype(rule.key) for rule in rules}, key=str)
    if len(found) > 1 or found[0] not in DTYPES.values():
        raise ConvertError(
            f"{reader.checkpoint}: holds tensors of {', '.join(map(str, found))}: choose --dtype"
        )
    return found[0]


def _read_tensors(
    reader: CheckpointReader, rules: list[Rule], out_dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face names and tensors; a layer's tensors are read from disk together."""

    def place(entry: tuple[Rule, int | None]) -> tuple[str, int]:
        rule, layer = entry
        return rule.key.partition(".")[0], -1 if layer is None else layer

    entries = sorted(((r, layer) for r in rules for layer in r.layers()), key=place)
    for _, group in groupby(entries, key=place):
        together = list(group)
        layer = together[0][1]
        loaded = reader.read([rule.key for rule, _ in together], layer)
        for rule, _ in together:
            tensor = loaded.pop(rule.key)
            if not bool(torch.isfinite(tensor).all()):
                where = "" if layer is None else f" of layer {layer}"
                raise ConvertError(
                    f"{reader.checkpoint}: {rule.key}{where} holds NaN or infinite values"
                )
            for name, part in to_hugging_face(rule, layer, tensor).items():
                yield name, part.to(out_dtype)


def _write_other_files(
    folder: Path,
    config: RunConfig,
    progress: dict | None,
    tokenizer: Any,
    dtype: torch.dtype,
) -> None:
    """Configuration, tokenizer, modelling files and model card."""
    dtype_name = str(dtype).removeprefix("torch.")
    image_token_id = tokenizer.convert_tokens_to_ids(config.model.image_token)
    eos_token_id, pad_token_id = tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    files = {
        CONFIG_FILE: model_config(config, dtype_name, image_token_id, eos_token_id, pad_token_id),
        "generation_config.json": generation_config(eos_token_id, pad_token_id),
        "preprocessor_config.json": preprocessor_config(config.model.vision.image_size),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    for name in MODELING_FILES:
        shutil.copyfile(Path(__file__).parent / "hf_files" / name, folder / name)

    components: dict[str, list[Rule]] = {}
    for rule in export_rules(config.model):
        components.setdefault(rule.key.partition(".")[0], []).append(rule)
    sizes = {name: num_parameters(rules) for name, rules in components.items()}
    (folder / "README.md").write_text(model_card(config, progress, sizes, dtype_name))


def _load_tokenizer(config: RunConfig) -> Any:
    from nvlm import platform

    platform.current()
    from transformers import AutoTokenizer

    name = config.model.tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())[:300]
        raise ConvertError(f"model.tokenizer {name}: cannot be loaded: {message}") from None
    known = tokenizer.get_vocab()
    for token in (config.model.image_token, TURN_END):
        if token not in known:
            raise ConvertError(f"model.tokenizer {name}: has no token {token}")
    return tokenizer


def _is_export(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG_FILE).read_text())["architectures"] == ["NVLM_D"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _put_in_place(beside: Path, out: Path) -> None:
    replaced = out.with_name(f"{beside.name}.old")
    if out.exists():
        out.rename(replaced)
    beside.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)
