"""Hugging Face InternViT and Qwen2 folders -> a checkpoint that training starts from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvlm.checkpoint_io import is_checkpoint, write_checkpoint
from nvlm.config.schema import RunConfig
from nvlm.convert.architectures import check_language, check_vision
from nvlm.convert.hf_folder import HfFolder
from nvlm.convert.rules import (
    Rule,
    expected_tensors,
    language_rules,
    to_megatron,
    vision_rules,
)
from nvlm.convert.session import conversion_groups, progress_bar
from nvlm.errors import ConvertError


@dataclass(frozen=True)
class Source:
    """A checked folder and the rules that read it."""

    folder: HfFolder
    rules: list[Rule]


def convert_from_hf(
    vision: str | Path, language: str | Path, config: RunConfig, out: str | Path
) -> Path:
    """Write checkpoint folder `out` from two Hugging Face folders; returns `out`.

    The projector is new: random with `model.projector.init_std`, a function of `train.seed`. Under
    torchrun every process calls this; they take the layout `config.parallel` and each converts its
    own shards. The result does not depend on the layout.

    Args:
        vision: folder of an InternViT (`InternVisionModel`), heads padded or not.
        language: folder of a Qwen2 (`Qwen2ForCausalLM`; `LlamaForCausalLM` without `qkv_bias`).
        config: its `model` section must describe both; weights get `train.precision`.
        out: a new folder, or a checkpoint to be replaced once the new one is whole.

    Raises:
        ConvertError: a folder is missing or of another architecture or size; tensors are missing,
            extra, of another shape or not finite. Nothing is written then.
    """
    sources = open_sources(vision, language, config)
    out = Path(out)
    if out.exists() and not is_checkpoint(out):
        raise ConvertError(f"{out}: exists and is not a checkpoint: remove it or name another")
    with conversion_groups(config) as (layout, parallel):
        from nvlm.model.initialize import initialize_weights
        from nvlm.model.nvlm_d import build_model

        model = build_model(layout, parallel)
        initialize_weights(model, layout, "vision_projection.*")
        fill_model(model, sources)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            return write_checkpoint(out, {"model": model.sharded_state_dict()}, config)
        except BaseException:
            if parallel.is_main:
                shutil.rmtree(out.with_name(out.name + ".tmp"), ignore_errors=True)
            raise


def open_sources(vision: str | Path, language: str | Path, config: RunConfig) -> list[Source]:
    """Open both folders and check architecture, sizes, names and shapes; reads no weights.

    Raises:
        ConvertError: see `convert_from_hf`.
    """
    vision_folder, language_folder = HfFolder(vision), HfFolder(language)
    check_vision(vision_folder, config.model.vision)
    check_language(language_folder, config.model.language)
    num_real_heads = config.model.vision.num_attention_heads
    num_heads = vision_folder.config.get("num_stored_attention_heads") or num_real_heads
    if num_heads > config.model.vision.num_stored_attention_heads:
        raise ConvertError(
            f"{vision_folder.path}: stores {num_heads} heads, more than "
            "model.vision.num_stored_attention_heads "
            f"{config.model.vision.num_stored_attention_heads}"
        )
    sources = [
        Source(vision_folder, vision_rules(config.model.vision, num_heads)),
        Source(language_folder, language_rules(config.model.language)),
    ]
    for source in sources:
        source.folder.check_tensors(expected_tensors(source.rules))
    return sources


def fill_model(model: Any, sources: list[Source]) -> None:
    """Overwrite this rank's parameters with their shards of the sources' tensors.

    Parameters that no rule makes are left alone; parameters of other ranks are not read.
    """
    from nvlm.model.initialize import sharded_tensors

    readers = {rule.key: (rule, source.folder) for source in sources for rule in source.rules}
    shards = [s for s in sharded_tensors(model.sharded_state_dict()) if s.key in readers]
    # Shards of one tensor (a SwiGLU's gate and up part) follow each other: read it once.
    previous: tuple[tuple[str, int | None], Tensor] | None = None
    with progress_bar("Reading Hugging Face tensors", len(shards)) as advance, torch.no_grad():
        for shard in shards:
            rule, folder = readers[shard.key]
            layer = shard.global_offset[0] if shard.prepend_axis_num else None
            place = (shard.key, layer)
            if previous is None or previous[0] != place:
                previous = (place, to_megatron(rule, layer, folder.read))
            whole = previous[1]
            shape = shard.global_shape[shard.prepend_axis_num :]
            assert whole.shape == shape, (shard.key, whole.shape, shape)
            shard.data.copy_(whole[shard.global_slice()[shard.prepend_axis_num :]])
            advance()
