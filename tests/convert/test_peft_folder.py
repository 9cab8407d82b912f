"""What a folder of peft's may say: taken as peft takes it, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nvlm.convert.adapters.from_peft import convert_from_peft
from nvlm.convert.adapters.peft_folder import PeftFolder
from nvlm.errors import ConvertError

LAYER = "language_model.model.layers.0"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}


def write(folder: Path, tensors: dict[str, torch.Tensor], **settings) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def module(name: str, inputs: int, outputs: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_A.weight": torch.ones(rank, inputs),
        f"{name}.lora_B.weight": torch.ones(outputs, rank),
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True: nvlm's adapters have nothing like it"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
        ({"target_parameters": ["w"]}, "target_parameters is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow is 1"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"r": 3}, r"has A \[2, 192\] and B \[192, 2\], where adapter_config.json says rank 3"),
        ({"rank_pattern": {"q_proj": 8}}, "says rank 8"),
        ({"lora_alpha": 0}, "lora_alpha of language_model.model.layers.0.self_attn.q_proj is 0"),
        ({"alpha_pattern": {"(": 1}}, "'\\(' is no pattern"),
    ],
)
def test_settings_that_nvlm_does_not_compute(tmp_path: Path, settings: dict, expected: str):
    folder = write(tmp_path / "peft", module(f"{LAYER}.self_attn.q_proj", 192, 192), **settings)
    with pytest.raises(ConvertError, match=expected):
        PeftFolder(folder)


def test_ranks_and_alphas_are_found_as_peft_finds_them(tmp_path: Path):
    """`get_layer_config` in peft: the end of a name, in the order of the patterns."""
    names = [f"{LAYER}.self_attn.{p}_proj" for p in "qkv"]
    tensors = module(names[0], 8, 8) | module(names[1], 8, 8, 5) | module(names[2], 8, 8, 4)
    patterns = {
        "rank_pattern": {"layers.0.self_attn.k_proj": 5, "proj": 9, "[kv]_proj": 4},
        "alpha_pattern": {"[qk]_proj": 7, "q_proj": 1},
    }
    folder = PeftFolder(write(tmp_path / "peft", tensors, **patterns))
    assert [(folder.modules[n].rank, folder.modules[n].alpha) for n in names] == [
        (2, 7),
        (5, 7),
        (4, 4),
    ]
    folder = PeftFolder(write(tmp_path / "rslora", tensors, **patterns, use_rslora=True))
    assert [folder.modules[n].alpha for n in names] == [7 * 2**0.5, 7 * 5**0.5, 4 * 4**0.5]


@pytest.mark.parametrize(
    ("tensors", "settings", "expected"),
    [
        ({}, {}, "has no adapters"),
        (module("lm_head", 192, 1000), {}, "has adapters of lm_head, beside which nvlm has none"),
        (module(f"{LAYER}.self_attn.q_proj", 8, 192), {}, r"q_proj has A \[2, 8\]"),
        (
            module(f"{LAYER}.self_attn.q_proj", 192, 192)
            | module(f"{LAYER}.self_attn.k_proj", 192, 96, 3),
            {"rank_pattern": {"k_proj": 3}},
            "q_proj has rank 2 and alpha 4, .*k_proj 3 and 4",
        ),
        (
            module(f"{LAYER}.self_attn.q_proj", 192, 192)
            | {f"{LAYER}.self_attn.q_proj.lora_magnitude_vector": torch.ones(192)},
            {"use_dora": True},
            "use_dora beside .*q_proj, but not beside all",
        ),
        (
            module(f"{LAYER}.mlp.down_proj", 512, 192) | {"lm_head.weight": torch.ones(2)},
            {},
            "lm_head.weight: neither an adapter's nor the projector's",
        ),
        (
            module(f"{LAYER}.mlp.down_proj", 512, 192) | {"mlp1.0.bias": torch.ones(2)},
            {},
            "of the projector, which it has, mlp1.0.bias, mlp1.0.weight",
        ),
        (
            module("vision_model.encoder.layers.0.attn.qkv", 160, 768),
            {},
            r"adds to stored heads beyond model\.vision\.num_attention_heads",
        ),
    ],
)
def test_adapters_that_have_no_place(converted, tmp_path, tensors, settings, expected):
    folder = write(tmp_path / "peft", tensors, **settings)
    with pytest.raises(ConvertError, match=expected):
        convert_from_peft(converted.checkpoint, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there(converted, tmp_path: Path):
    with pytest.raises(ConvertError, match="no such folder"):
        convert_from_peft(converted.checkpoint, tmp_path / "peft", tmp_path / "out")
    folder = write(tmp_path / "peft", {})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConvertError, match="save the adapters as safetensors"):
        convert_from_peft(converted.checkpoint, folder, tmp_path / "out")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConvertError, match=r"adapter_config\.json: no such file"):
        convert_from_peft(converted.checkpoint, folder, tmp_path / "out")
