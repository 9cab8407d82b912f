"""The tables themselves: row orders, padding, and that reading one back undoes it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import small_folders
from helpers.paths import REPOSITORY

from nvlm.config import changed
from nvlm.convert.rules import (
    expected_tensors,
    num_parameters,
    to_hugging_face,
    to_megatron,
)
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.convert.tables.qwen2 import language_rules
from nvlm.errors import ConvertError
from nvlm.rows import Place
from nvlm.sizes.parameters import parameters_by_key


def _numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """Rows that say their number."""
    rows = torch.arange(shape[0], dtype=torch.float64)
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def _rule(rules, suffix):
    (found,) = [rule for rule in rules if rule.key.endswith(suffix)]
    return found


def test_vision_queries_keys_and_values_interleave_by_head_and_zero_heads_are_zero():
    model = small_folders.convert_config().model  # 5 heads of 32 channels, stored as 8
    rule = _rule(vision_rules(model, num_hf_heads=5), "linear_qkv.weight")
    assert rule.sources == {"encoder.layers.{layer}.attn.qkv.weight": (480, 160)}
    joined = to_megatron(rule, Place(0), lambda name: _numbered((480, 160)))
    assert joined.shape == (768, 160)
    rows = joined[:, 0]
    # Head 1: queries at 32, keys at 160 + 32, values at 320 + 32.
    expected = [torch.arange(start, start + 32) for start in (32, 192, 352)]
    assert rows[96:192].tolist() == torch.cat(expected).tolist()
    assert not joined[480:].any()


def test_vision_export_layout_keeps_zero_heads_at_the_tail_of_each_block():
    model = small_folders.convert_config().model
    rule = _rule(vision_rules(model, num_hf_heads=8), "linear_qkv.weight")
    per_head = _numbered((768, 160))
    per_head[480:] = 0
    (exported,) = to_hugging_face(rule, Place(0), per_head).values()
    for block in exported.view(3, 256, 160):
        assert not block[160:].any()
        assert block[1:160].any(dim=1).all()


def test_language_queries_keys_and_values_join_by_group():
    model = small_folders.convert_config().model  # 8 heads of 24, 4 groups
    rule = _rule(language_rules(model), "linear_qkv.weight")
    offsets = {"q_proj": 0, "k_proj": 1000, "v_proj": 2000}

    def read(name: str) -> torch.Tensor:
        (part,) = [part for part in offsets if part in name]
        return _numbered(expected_tensors([rule])[name]) + offsets[part]

    rows = to_megatron(rule, Place(0), read)[:, 0]
    group = torch.cat([torch.arange(48, 96), torch.arange(1024, 1048), torch.arange(2024, 2048)])
    assert rows[96:192].tolist() == group.tolist()


def test_gate_comes_before_up():
    model = small_folders.convert_config().model
    rule = _rule(language_rules(model), "mlp.linear_fc1.weight")
    joined = to_megatron(rule, Place(0), lambda name: torch.full((512, 192), float("gate" in name)))
    assert joined[:512].all()
    assert not joined[512:].any()


# Overrides of the tiny model: the variants that configs/model has.
VARIANTS = {
    "InternViT-6B, Qwen2": [],
    "InternViT-300M": [
        "model.vision.normalization=LayerNorm",
        "model.vision.qk_layernorm=false",
        "model.vision.qkv_bias=true",
    ],
    "no zero heads": ["model.vision.num_stored_attention_heads=5"],
    "Yi": ["model.language.qkv_bias=false"],
    "shared embeddings": ["model.language.share_embeddings_and_output_weights=true"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_every_rule_reads_back_what_it_wrote(overrides):
    model = small_folders.convert_config(*overrides).model
    generator = torch.Generator().manual_seed(0)
    for rule in export_rules(model):
        tensor = torch.randn(rule.shape, generator=generator)
        if rule.parameter.zero_heads is not None:
            rule.parameter.zero_heads.of(tensor).zero_()
        written = to_hugging_face(rule, Place(1), tensor)
        assert torch.equal(to_megatron(rule, Place(1), written.get), tensor), rule.key


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_rules_make_every_parameter_of_the_model_and_no_other(overrides):
    """The table is checked against the built model in tests/sizes/test_parameters.py."""
    model = small_folders.convert_config(*overrides).model
    rules = export_rules(model)
    assert {rule.key: rule.parameter for rule in rules} == parameters_by_key(model)
    for rule in rules:
        assert sum(map(math.prod, rule.sources.values())) == rule.parameter.size


def test_variant_300m_reads_biases_and_no_qk_norm():
    model = small_folders.convert_config(*VARIANTS["InternViT-300M"]).model
    shapes = expected_tensors(vision_rules(model, num_hf_heads=5))
    layer = "encoder.layers.1."
    assert shapes[layer + "attn.qkv.bias"] == (480,)
    assert shapes[layer + "norm1.bias"] == shapes[layer + "norm2.bias"] == (160,)
    assert not [name for name in shapes if "q_norm" in name or "k_norm" in name]
    # The bias is interleaved as the weight's rows are, with zeros for the zero heads.
    rule = _rule(vision_rules(model, num_hf_heads=5), "linear_qkv.bias")
    bias = to_megatron(rule, Place(0), lambda name: _numbered((480,)))
    assert bias[96:192].tolist() == [*range(32, 64), *range(192, 224), *range(352, 384)]
    assert bias.shape == (768,) and not bias[480:].any()


@pytest.mark.parametrize(
    "name, where",
    [("attn.qkv.weight", (250, 3)), ("attn.proj.weight", (3, 250)), ("attn.q_norm.weight", (250,))],
)
def test_zero_heads_that_are_not_zero_are_refused(name, where):
    """Weights of another program: heads 6 to 8 of the released layout hold something."""
    model = small_folders.convert_config().model
    rules = vision_rules(model, num_hf_heads=8)
    name = f"encoder.layers.1.{name}"
    tensors = {name: torch.zeros(expected_tensors(rules)[name])}
    (rule,) = [rule for rule in rules if name in rule.names(Place(1))]
    assert not to_megatron(rule, Place(1), tensors.get).any()
    tensors[name][where] = 0.25
    with pytest.raises(ConvertError, match=rf"{name}: stored heads beyond .* up to 0.25"):
        to_megatron(rule, Place(1), tensors.get)


def test_full_size_has_the_published_number_of_parameters_and_names():
    """Counts of the released model with padded heads: 79.38 B in all."""
    from nvlm.config import load_config

    path = REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml"
    rules = export_rules(load_config(path).model)
    assert num_parameters(rules) == 79_379_593_344
    shapes = expected_tensors(rules)
    assert shapes["vision_model.encoder.layers.44.attn.qkv.weight"] == (12288, 3200)
    assert shapes["vision_model.encoder.layers.0.attn.q_norm.weight"] == (4096,)
    assert shapes["mlp1.1.weight"] == (29568, 12800)
    assert shapes["mlp1.3.weight"] == (8192, 29568)
    assert shapes["language_model.model.layers.79.self_attn.k_proj.weight"] == (1024, 8192)
    assert shapes["language_model.lm_head.weight"] == (152064, 8192)


@pytest.mark.parametrize("visual_weights", ["norms_keys_values", "all"])
def test_weights_of_image_tokens_begin_as_copies(visual_weights: str):
    key = "model.language.visual_weights"
    model = changed(small_folders.convert_config(), {key: visual_weights}).model
    language = model.language
    rules = {rule.key: rule for rule in language_rules(model)}

    def read(name: str) -> torch.Tensor:
        shape = expected_tensors(list(rules.values()))[name]
        seed = int.from_bytes(name.encode()[-4:], "big")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    visual = {name: rule for name, rule in rules.items() if ".visual_" in name}
    assert len(visual) == {"norms_keys_values": 4, "all": 7}[visual_weights]
    assert set(expected_tensors(list(rules.values()))) == set(
        expected_tensors(language_rules(changed_back(model)))
    )
    for name, rule in visual.items():
        own = to_megatron(rule, Place(1), read)
        whole = to_megatron(rules[name.replace(".visual_", ".")], Place(1), read)
        if own.shape != whole.shape:  # of each group its key and its value
            by_group = whole.unflatten(0, (language.num_query_groups, -1))
            whole = by_group[:, -2 * language.head_dim :].flatten(0, 1)
        assert torch.equal(own, whole), name


def changed_back(model):
    language = model.language.model_copy(update={"visual_weights": "none"})
    return model.model_copy(update={"language": language})
