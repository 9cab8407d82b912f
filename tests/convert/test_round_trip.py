"""Hugging Face -> Megatron-core -> Hugging Face: every tensor comes back bit for bit."""

from __future__ import annotations

import json

import torch
from helpers import small_folders

from nvlm.convert import convert_to_hf
from nvlm.convert.rules import expected_tensors
from nvlm.convert.tables.nvlm_d import export_rules


def test_language_tensors_come_back(converted):
    source, exported = map(small_folders.read_tensors, (converted.language, converted.export))
    assert source
    for name, tensor in source.items():
        assert torch.equal(exported[f"language_model.{name}"], tensor), name


def test_vision_tensors_come_back_with_zero_heads_behind_the_real_ones(converted):
    source, exported = map(small_folders.read_tensors, (converted.vision, converted.export))
    vision = converted.config.model.vision
    real, stored = vision.hidden_size, vision.num_stored_attention_heads * vision.head_dim
    for name, tensor in source.items():
        found = exported[f"vision_model.{name}"]
        if name.endswith("attn.qkv.weight"):
            blocks = found.view(3, stored, -1)
            assert not blocks[:, real:].any()
            found = blocks[:, :real].reshape(tensor.shape)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            assert not found[real:].any()
            found = found[:real]
        elif name.endswith("attn.proj.weight"):
            assert not found[:, real:].any()
            found = found[:, :real]
        assert torch.equal(found, tensor), name


def test_export_has_exactly_the_released_names(converted):
    exported = small_folders.read_tensors(converted.export)
    shapes = {name: tuple(tensor.shape) for name, tensor in exported.items()}
    assert shapes == expected_tensors(export_rules(converted.config.model))
    index = json.loads((converted.export / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == shapes.keys()
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in exported.values())


def test_projector_is_random_with_its_own_deviation(converted):
    exported = small_folders.read_tensors(converted.export)
    assert torch.equal(exported["mlp1.0.weight"], torch.ones_like(exported["mlp1.0.weight"]))
    assert abs(exported["mlp1.1.weight"].std().item() / 0.014 - 1) < 0.02


def test_bf16_export_is_the_rounded_fp32_one(converted, tmp_path):
    out = convert_to_hf(converted.checkpoint, tmp_path / "export", dtype="bf16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    rounded, exact = map(small_folders.read_tensors, (out, converted.export))
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.bfloat16()), name
