"""A checkpoint -> a Hugging Face folder in the layout of the released NVLM-D-72B."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nvlm.checkpoint_io import (
    check_contents,
    on_every_rank,
    on_main_rank,
    read_config,
    read_progress,
    replace_folder,
    resolve_checkpoint,
)
from nvlm.convert.export.config import check_switches, check_tiles, serving_differences
from nvlm.convert.export.files import write_export_files
from nvlm.convert.export.shards import plan_files, write_files, write_index
from nvlm.convert.export.tokenizer import load_tokenizer
from nvlm.convert.hf.config_keys import FUSIONS
from nvlm.convert.hf.folder import CONFIG_FILE
from nvlm.convert.megatron.tensors import CheckpointTensors
from nvlm.convert.session import (
    Stopwatch,
    check_free_space,
    check_target,
    conversion_processes,
    print_note,
)
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.dtypes import DTYPES
from nvlm.errors import ConvertError
from nvlm.files import parse_size

# That training and transformers both know.
_WRITTEN = {name: DTYPES[name].torch for name in ("fp32", "bf16")}


def convert_to_hf(
    checkpoint: str | Path, out: str | Path, dtype: str | None = None, shard_size: str = "5GB"
) -> Path:
    """Write `out` from a checkpoint that any layout wrote; returns `out`.

    A few rows are in memory at a time. Under torchrun every process calls this, and each writes
    some of the files; the files do not depend on the number of processes.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its latest checkpoint).
        out: a new folder, or an earlier export, replaced once the new one is whole.
        dtype: `fp32` or `bf16`; None: as in the checkpoint.
        shard_size: largest safetensors file, such as `5GB`.

    Raises:
        CheckpointError: there is no whole checkpoint, or `out` cannot be written.
        ConvertError: it lacks tensors or has them in another shape, holds NaN, its tokenizer is
            gone, `out` is something else, its disk has no room for it, or `dtype` is not
            understood.
        NvlmError: `shard_size` is not understood.
    """
    watch = Stopwatch()
    out = Path(out)
    if dtype is not None and dtype not in _WRITTEN:
        raise ConvertError(f"dtype {dtype!r}: expected one of {', '.join(_WRITTEN)}")
    shard_bytes = parse_size(shard_size, "--shard-size")
    check_target(out, [])
    if out.exists() and not _is_export(out):
        raise ConvertError(f"{out}: exists and is not an earlier export: remove it or name another")
    checkpoint = resolve_checkpoint(checkpoint)
    check_target(out, [checkpoint])
    config, progress = read_config(checkpoint), read_progress(checkpoint)
    check_tiles(config)
    check_switches(config)
    tokenizer, chat = load_tokenizer(config)

    tensors = CheckpointTensors(checkpoint, export_rules(config.model))
    out_dtype = _WRITTEN[dtype] if dtype else _common_dtype(tensors)
    files = plan_files(tensors, out_dtype, shard_bytes)
    num_bytes = sum(file.num_bytes for file in files)
    check_free_space(out, num_bytes)

    with conversion_processes() as processes:
        check_contents(checkpoint)
        mine = processes.share(files, lambda file: file.num_bytes)

        def describe(folder: Path) -> None:
            write_index(folder, files)
            write_export_files(folder, config, progress, tokenizer, chat, out_dtype)

        def write(folder: Path) -> None:
            on_every_rank(lambda: write_files(folder, mine, tensors))
            on_main_rank(lambda: describe(folder))

        replace_folder(out, write)
        watch.print_summary(f"Wrote {out}", len(tensors.names()), num_bytes, processes)
    for difference in serving_differences(config):
        print_note(difference)
    return out


def _common_dtype(tensors: CheckpointTensors) -> torch.dtype:
    found = sorted({tensors.dtype(name) for name in tensors.names()}, key=str)
    if len(found) > 1 or found[0] not in _WRITTEN.values():
        raise ConvertError(
            f"{tensors.path}: holds tensors of {', '.join(map(str, found))}: choose --dtype"
        )
    return found[0]


def _is_export(folder: Path) -> bool:
    try:
        (architecture,) = json.loads((folder / CONFIG_FILE).read_text())["architectures"]
        return architecture in FUSIONS
    except (OSError, ValueError, KeyError, TypeError):
        return False
