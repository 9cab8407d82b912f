"""The adapters of a checkpoint alone, as peft saves them beside an export of the model.

peft's names and keys: `PeftModel.save_pretrained`, and `LoraConfig` (huggingface.co/docs/peft).
Each of Hugging Face's matrices has an adapter of its own there; rows of B are put in their order by
the rules that convert the matrices themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nvlm.checkpoint_io import on_main_rank, replace_folder, resolve_checkpoint
from nvlm.config.schema import RunConfig
from nvlm.convert.adapters.factors import Factors, adapters_in, read_factors
from nvlm.convert.adapters.peft_folder import (
    LORA_A,
    LORA_B,
    MAGNITUDE,
    PREFIX,
    PROJECTOR_MODULE,
    WEIGHTS_FILE,
)
from nvlm.convert.blocks import Buffer, raw_bytes
from nvlm.convert.hf.folder import ADAPTER_FILE
from nvlm.convert.hf.safetensors_file import SafetensorsOutput
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.rules import Rule, to_hugging_face
from nvlm.convert.session import Stopwatch, check_target, conversion_processes
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.errors import ConvertError
from nvlm.rows import Place
from nvlm.sizes.adapters import Adapter, frozen_patterns
from nvlm.sizes.parameters import PROJECTOR, is_frozen


def convert_to_peft(checkpoint: str | Path, out: str | Path) -> Path:
    """Write folder `out` with the adapters of a checkpoint; returns `out`.

    A projector that trained whole is saved with them. `PeftModel.from_pretrained(MODEL, out)` puts
    them over an export of the checkpoint that the run started from.

    Args:
        checkpoint: a checkpoint that any layout wrote, or a run folder (its latest checkpoint).
        out: a new folder, or an earlier one of these, replaced once the new one is whole.

    Raises:
        CheckpointError: there is no whole checkpoint, or `out` cannot be written.
        ConvertError: it has no adapters, or what peft's format cannot say: adapters with and
            without DoRA, or an encoder or decoder that trained whole; or `out` is something else.
    """
    watch, out = Stopwatch(), Path(out)
    check_target(out, [])
    if out.exists() and not (out / ADAPTER_FILE).is_file():
        raise ConvertError(f"{out}: exists and has no {ADAPTER_FILE}: remove it or name another")
    checkpoint = resolve_checkpoint(checkpoint)
    check_target(out, [checkpoint])
    reader = CheckpointReader(checkpoint)
    config, adapters = adapters_in(checkpoint, reader)
    rules = {rule.key: rule for rule in export_rules(config.model)}
    trained = _trained_whole(checkpoint, config, rules)
    settings = _settings(checkpoint, adapters, rules, bool(trained))
    tensors: dict[str, Tensor] = {}
    for adapter in adapters:
        tensors |= peft_tensors(read_factors(reader, adapter), rules[adapter.matrix.key])
    for rule in trained:
        whole = reader.read(rule.parameter, Place(), 0, rule.shape[0], Buffer())
        tensors |= {f"{PREFIX}{k}": t for k, t in to_hugging_face(rule, Place(), whole).items()}

    def write(folder: Path) -> None:
        (folder / ADAPTER_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtype = next(iter(tensors.values())).dtype
        with SafetensorsOutput(folder / WEIGHTS_FILE, shapes, dtype) as output:
            for name, tensor in tensors.items():
                output.write(name, 0, raw_bytes(tensor))

    with conversion_processes() as processes:
        replace_folder(out, lambda folder: on_main_rank(lambda: write(folder)))
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        watch.print_summary(f"Wrote {out}", len(tensors), num_bytes, processes)
    return out


def _trained_whole(checkpoint: Path, config: RunConfig, rules: dict[str, Rule]) -> list[Rule]:
    """What trains without an adapter: all or nothing of the projector.

    Raises:
        ConvertError: something else does too.
    """
    frozen = frozen_patterns(config)
    trained = [
        rule
        for rule in rules.values()
        for place in rule.parameter.places()
        if not is_frozen(rule.parameter.name(place), frozen)
    ]
    if config.stage.has_soft_tags:
        raise ConvertError(
            f"{checkpoint}: has learned tile tags (stage.tile_tags soft), which adapters alone do "
            "not hold: put the adapters into the model with `nvlm convert merge`"
        )
    if config.stage.alignment is not None:
        raise ConvertError(
            f"{checkpoint}: has levels of alignment (stage.alignment), which adapters alone do not "
            "hold: put the adapters into the model with `nvlm convert merge`"
        )
    others = {rule.parameter.component for rule in trained} - {PROJECTOR}
    if others:
        raise ConvertError(
            f"{checkpoint}: {' and '.join(sorted(others))} trained without adapters, which adapters"
            " alone do not hold: put them into the model with `nvlm convert merge`"
        )
    return [r for r in rules.values() if r.parameter.component == PROJECTOR] if trained else []


def modules_of(rule: Rule, place: Place) -> list[str]:
    """Of Hugging Face's linear layers that a matrix is made of."""
    return [name.removesuffix(".weight") for name in rule.names(place)]


def peft_tensors(factors: Factors, rule: Rule) -> dict[str, Tensor]:
    """peft's names -> tensors of one matrix, which `rule` converts."""
    adapter = factors.adapter
    rows_of_b = rule.layout.split(factors.b) if is_by_rows(rule) else [factors.b]
    a = factors.a
    if not is_by_rows(rule):
        (a,) = rule.layout.split(a)
    modules = modules_of(rule, adapter.place)
    # Matrices that are one to Megatron-core's adapter have one A.
    parts_of_a = a.chunk(adapter.num_parts) if adapter.num_parts > 1 else [a] * len(modules)
    parts = zip(modules, parts_of_a, rows_of_b, strict=True)
    found: dict[str, Tensor] = {}
    for module, a_of_part, b in parts:
        found[f"{PREFIX}{module}{LORA_A}"] = a_of_part
        found[f"{PREFIX}{module}{LORA_B}"] = b
    if factors.magnitude is not None:
        lengths = [factors.magnitude]
        if is_by_rows(rule):
            lengths = rule.layout.split(factors.magnitude)
        for module, length in zip(modules, lengths, strict=True):
            found[f"{PREFIX}{module}{MAGNITUDE}"] = length
    return found


def is_by_rows(rule: Rule) -> bool:
    """Whether the layout rearranges the matrix's rows, and not what it multiplies."""
    zero = rule.parameter.zero_heads
    return zero is None or zero.axis == 0


def _settings(
    checkpoint: Path, adapters: list[Adapter], rules: dict[str, Rule], with_projector: bool
) -> dict[str, Any]:
    """peft's `LoraConfig`; ranks and scales that not all adapters have are said by module."""
    if len({adapter.settings.dora for adapter in adapters}) > 1:
        raise ConvertError(
            f"{checkpoint}: has adapters with and without dora, which peft does not load as one: "
            "put them into the model with `nvlm convert merge`"
        )
    modules = {
        module: adapter
        for adapter in adapters
        for module in modules_of(rules[adapter.matrix.key], adapter.place)
    }
    ranks = {module: adapter.settings.rank for module, adapter in modules.items()}
    alphas = {module: adapter.alpha for module, adapter in modules.items()}
    (rank, _), *_ = Counter(ranks.values()).most_common()
    (alpha, _), *_ = Counter(alphas.values()).most_common()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": adapters[0].settings.dora,
        "inference_mode": True,
        "target_modules": list(_targets(modules, rules)),
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
        "modules_to_save": [PROJECTOR_MODULE] if with_projector else None,
    }


def _targets(modules: dict[str, Adapter], rules: dict[str, Rule]) -> Iterator[str]:
    """The adapted modules: by the last part of their names where all that are called so have one.

    peft takes such a name for every module whose own ends with it.
    """
    everywhere = [
        module
        for rule in rules.values()
        for place in rule.parameter.places()
        for module in modules_of(rule, place)
    ]
    counts = Counter(module.rpartition(".")[2] for module in everywhere)
    adapted = Counter(module.rpartition(".")[2] for module in modules)
    short = {last for last in adapted if counts[last] == adapted[last] and not last.isdigit()}
    yield from sorted(short)
    yield from (module for module in modules if module.rpartition(".")[2] not in short)
