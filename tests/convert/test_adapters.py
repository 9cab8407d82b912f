"""Adapters beside what peft makes of them, alone and put into the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import adapter_steps, export_runs, generate_case, small_model
from torch import Tensor

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import read_config
from nvlm.config import RunConfig, changed
from nvlm.convert.adapters.factors import Factors
from nvlm.convert.adapters.from_peft import convert_from_peft
from nvlm.convert.adapters.merge import merge_adapters
from nvlm.convert.adapters.to_peft import convert_to_peft, peft_tensors
from nvlm.convert.blocks import Buffer
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.convert.to_hf import convert_to_hf
from nvlm.convert.verify import verify
from nvlm.errors import ConvertError
from nvlm.rows import Place
from nvlm.sizes.adapters import adapters_of
from nvlm.sizes.parameters import PROJECTOR, parameter_table

# With a projector that trains whole beside adapters of the decoder, all layers but one.
WITH_PROJECTOR = (
    "stage.adapters={'language_model.decoder.layers.[0-2].*.linear_*.weight': {rank: 4, alpha: 3}}"
)
CASES = {"LoRA": adapter_steps.LORA, "DoRA": adapter_steps.DORA, "projector": WITH_PROJECTOR}
PEFT = "peft's adapters over transformers' model"
# As users of peft make them: of some of the matrices that Megatron-core has in one.
MADE = {
    "some matrices": {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 4, "lora_alpha": 6},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "attn.proj", "fc2"],
        "r": 4,
        "rank_pattern": {r"layers.1.self_attn.[qkv]_proj": 2, "fc2": 3},
        "alpha_pattern": {"o_proj": 5},
        "use_rslora": True,
        "lora_dropout": 0.1,
        "modules_to_save": ["mlp1"],
    },
    "lengths": {"target_modules": r".*mlp\.(gate|up|down)_proj|mlp1.1", "r": 3, "use_dora": True},
}


@dataclass(frozen=True)
class Adapted:
    """A checkpoint with adapters that are not zero, and what the model computes with it."""

    config: RunConfig
    checkpoint: Path
    adapters: Path  # alone
    logits: Tensor
    gradients: dict[str, Tensor]  # peft's name -> of (logits * weights).sum()


@dataclass(frozen=True)
class Inputs:
    input_ids: Tensor
    tiles: np.ndarray
    weights: Tensor


@pytest.fixture(scope="module")
def inputs(converted) -> Inputs:
    size = converted.config.model.vision.image_size
    image_id = json.loads((converted.export / "config.json").read_text())["img_context_token_id"]
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 1000, (1, 12), generator=generator)
    image = torch.full((1, 2 * converted.config.model.num_tokens_per_tile), image_id)
    input_ids = torch.cat([text[:, :5], image, text[:, 5:]], dim=1)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    shape = (1, input_ids.shape[1], converted.config.model.language.vocab_size)
    return Inputs(input_ids, tiles, torch.randn(shape, generator=generator) / 30)


@pytest.fixture(scope="module")
def adapted(converted, inputs, parallel, tmp_path_factory) -> dict[str, Adapted]:
    folder = tmp_path_factory.mktemp("adapted")
    return {
        name: _adapt(converted, inputs, parallel, adapters, folder / name)
        for name, adapters in CASES.items()
    }


@pytest.fixture(scope="module")
def in_peft(converted, inputs, adapted, made_folder, tmp_path_factory) -> dict[str, dict]:
    cases = {
        "input_ids": inputs.input_ids,
        "pixel_values": export_runs.normalize(inputs.tiles),
        "weights": inputs.weights,
        "adapters": {name: str(one.adapters) for name, one in adapted.items()},
        "made": {
            name: {"settings": settings, "folder": str(made_folder / name)}
            for name, settings in MADE.items()
        },
    }
    folder = tmp_path_factory.mktemp("peft")
    return export_runs.run_client("peft_client.py", converted.export, cases, folder)


@pytest.fixture(scope="module")
def made_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("made")


def _adapt(converted, inputs: Inputs, parallel, adapters: str, folder: Path) -> Adapted:
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.train.checkpoint import load_weights

    settings = adapter_steps.config_of(adapters).stage.adapters
    config = changed(converted.config, {"stage.adapters": settings})
    model = small_model.build(config, parallel).eval()
    projector = {n: p.detach().clone() for n, p in model.vision_projection.named_parameters()}
    assert "*.adapter.*" in load_weights(converted.checkpoint, [model], parallel)
    if adapters == WITH_PROJECTOR:
        with torch.no_grad():
            for name, parameter in model.vision_projection.named_parameters():
                parameter.copy_(projector[name])
    checkpoint = write_checkpoint(folder / "checkpoint", model.sharded_state_dict(), config)
    logits = model(_batch(inputs, converted), return_logits=True)
    (logits * inputs.weights).sum().backward()
    rules = {rule.key: rule for rule in export_rules(config.model)}
    gradients: dict[str, Tensor] = {}
    for adapter in adapters_of(config):
        module = model.get_submodule(adapter.name)
        found = [module.lora_a.grad, module.lora_b.grad]
        magnitude = None if module.magnitude is None else module.magnitude.grad
        gradients |= peft_tensors(Factors(adapter, *found, magnitude), rules[adapter.matrix.key])
    alone = convert_to_peft(checkpoint, folder / "adapters")
    return Adapted(config, checkpoint, alone, logits.detach(), gradients)


def _batch(inputs: Inputs, converted) -> MicroBatch:
    image_id = json.loads((converted.export / "config.json").read_text())["img_context_token_id"]
    length = inputs.input_ids.shape[1]
    return MicroBatch(
        tokens=inputs.input_ids,
        labels=torch.full_like(inputs.input_ids, -100),
        position_ids=torch.arange(length)[None],
        image_mask=inputs.input_ids == image_id,
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        tiles=torch.from_numpy(inputs.tiles),
    )


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_pefts(case, adapted, in_peft, measure):
    ours, theirs = adapted[case].logits, in_peft[case]
    assert ours.std() > 0.1
    for name in ("logits", "merged"):
        error = (ours - theirs[name]).abs().max().item()
        measure(f"{case}: {name} with adapters, fp32, largest difference", PEFT, error, 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_pefts(case, adapted, in_peft, measure):
    ours, theirs = adapted[case].gradients, in_peft[case]["gradients"]
    found = {_file_name(name): gradient for name, gradient in theirs.items() if "lora_" in name}
    assert found.keys() == ours.keys()
    errors = {name: float((ours[name] - found[name]).norm() / found[name].norm()) for name in found}
    worst = max(errors, key=errors.__getitem__)
    print(worst)
    measure(f"{case}: gradients of the worst adapter", PEFT, errors[worst], 1e-4)


def _file_name(name: str) -> str:
    """Of a parameter, in a saved folder."""
    return name.removesuffix(".weight") if "magnitude" in name else name


@pytest.mark.parametrize("case", CASES)
def test_merged_checkpoint_equals_the_adapted_one(
    case, converted, adapted, inputs, parallel, tmp_path, measure
):
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import load_weights

    merged = merge_adapters(adapted[case].checkpoint, tmp_path / "merged")
    model = build_model(converted.config, parallel).eval()
    load_weights(merged, [model], parallel)
    with torch.no_grad():
        logits = model(_batch(inputs, converted), return_logits=True)
    error = (logits - adapted[case].logits).abs().max().item()
    measure(f"{case}: logits of the merged checkpoint", "the adapted one", error, 1e-4)
    report = verify(merged, converted.checkpoint)
    changed_names = {difference.name for difference in report.differences}
    assert changed_names and report.num_equal, "only some matrices have adapters"
    if case == "DoRA":
        convert_to_hf(merged, tmp_path / "export")
        assert generate_case.answers(adapted[case].checkpoint) == generate_case.answers(merged)


def test_a_projector_that_trained_whole_is_saved_with_adapters(adapted):
    settings = json.loads((adapted["projector"].adapters / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["mlp1"]
    assert len(settings["target_modules"]) == 3 * 7  # one of four layers has none
    settings = json.loads((adapted["DoRA"].adapters / "adapter_config.json").read_text())
    assert settings["modules_to_save"] is None and settings["use_dora"]
    assert {"q_proj", "gate_proj", "mlp1.1", "proj"} <= {*settings["target_modules"]}


@pytest.mark.parametrize("case", CASES)
def test_adapters_that_were_written_are_read_back_bit_for_bit(case, converted, adapted, tmp_path):
    one = adapted[case]
    base = converted.checkpoint
    if case == "projector":  # whose own weights are in the folder
        base = merge_adapters(one.checkpoint, tmp_path / "merged")
    back = convert_from_peft(base, one.adapters, tmp_path / "back")
    config = read_config(back)
    assert adapters_of(config) == adapters_of(one.config)
    found, expected = CheckpointReader(back), CheckpointReader(one.checkpoint)
    compared = {row.key: row for a in adapters_of(config) for row in a.parameters()}
    if case == "projector":
        compared |= {r.key: r for r in parameter_table(config.model) if r.component == PROJECTOR}
    for row in compared.values():
        ours, theirs = (r.read(row, Place(), 0, row.shape[0], Buffer()) for r in (found, expected))
        assert torch.equal(ours, theirs), row.key
    again = convert_to_peft(back, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (one.adapters / name).read_bytes()


@pytest.mark.parametrize("case", MADE)
def test_adapters_that_peft_made_compute_the_same_here(
    case, converted, inputs, in_peft, made_folder, parallel, tmp_path, measure
):
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import load_weights

    checkpoint = convert_from_peft(converted.checkpoint, made_folder / case, tmp_path / "read")
    config = read_config(checkpoint)
    model = build_model(config, parallel).eval()
    assert "*.adapter.*" not in load_weights(checkpoint, [model], parallel)
    with torch.no_grad():
        logits = model(_batch(inputs, converted), return_logits=True)
    plain = in_peft["LoRA"]["logits"]
    assert (logits - plain).abs().max() > 0.01
    error = (logits - in_peft[case]["logits"]).abs().max().item()
    measure(f"{case}: logits with adapters that peft made, fp32", PEFT, error, 1e-4)


def test_what_adapters_alone_do_not_hold_is_refused(adapted, converted, tmp_path, parallel):
    with pytest.raises(ConvertError, match="has no adapters"):
        convert_to_peft(converted.checkpoint, tmp_path / "out")
    with pytest.raises(ConvertError, match="nvlm convert merge"):
        convert_to_hf(adapted["LoRA"].checkpoint, tmp_path / "out")
    with pytest.raises(ConvertError, match="has adapters beside its matrices"):
        verify(adapted["LoRA"].checkpoint, converted.checkpoint)
