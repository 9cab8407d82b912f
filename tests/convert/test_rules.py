"""The tables themselves: row orders, padding, and that reading one back undoes it."""

from __future__ import annotations

import small_folders
import torch

from nvlm.convert.rules import (
    expected_tensors,
    export_rules,
    language_rules,
    num_parameters,
    to_hugging_face,
    to_megatron,
    vision_rules,
)


def _numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """Rows that say their number."""
    rows = torch.arange(shape[0], dtype=torch.float64)
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def _rule(rules, suffix):
    (found,) = [rule for rule in rules if rule.key.endswith(suffix)]
    return found


def test_vision_queries_keys_and_values_interleave_by_head_and_dummy_heads_are_zero():
    vision = small_folders.convert_config().model.vision  # 5 heads of 32 channels, stored as 8
    rule = _rule(vision_rules(vision, num_hf_heads=5), "linear_qkv.weight")
    assert rule.sources == {"encoder.layers.{layer}.attn.qkv.weight": (480, 160)}
    joined = to_megatron(rule, 0, lambda name: _numbered((480, 160)))
    assert joined.shape == (768, 160)
    rows = joined[:, 0]
    # Head 1: queries at 32, keys at 160 + 32, values at 320 + 32.
    expected = [torch.arange(start, start + 32) for start in (32, 192, 352)]
    assert rows[96:192].tolist() == torch.cat(expected).tolist()
    assert not joined[480:].any()


def test_vision_export_layout_keeps_dummy_heads_at_the_tail_of_each_block():
    vision = small_folders.convert_config().model.vision
    rule = _rule(vision_rules(vision, num_hf_heads=8), "linear_qkv.weight")
    per_head = _numbered((768, 160))
    per_head[480:] = 0
    (exported,) = to_hugging_face(rule, 0, per_head).values()
    for block in exported.view(3, 256, 160):
        assert not block[160:].any()
        assert block[1:160].any(dim=1).all()


def test_language_queries_keys_and_values_join_by_group():
    language = small_folders.convert_config().model.language  # 8 heads of 24, 4 groups
    rule = _rule(language_rules(language), "linear_qkv.weight")
    offsets = {"q_proj": 0, "k_proj": 1000, "v_proj": 2000}

    def read(name: str) -> torch.Tensor:
        (part,) = [part for part in offsets if part in name]
        return _numbered(expected_tensors([rule])[name]) + offsets[part]

    rows = to_megatron(rule, 0, read)[:, 0]
    group = torch.cat([torch.arange(48, 96), torch.arange(1024, 1048), torch.arange(2024, 2048)])
    assert rows[96:192].tolist() == group.tolist()


def test_gate_comes_before_up():
    language = small_folders.convert_config().model.language
    rule = _rule(language_rules(language), "mlp.linear_fc1.weight")
    joined = to_megatron(rule, 0, lambda name: torch.full((512, 192), float("gate" in name)))
    assert joined[:512].all()
    assert not joined[512:].any()


def test_every_rule_reads_back_what_it_wrote():
    model = small_folders.convert_config().model
    generator = torch.Generator().manual_seed(0)
    for rules in (
        export_rules(model),
        vision_rules(model.vision, model.vision.num_attention_heads),
        language_rules(model.language.model_copy(update={"qkv_bias": False})),
    ):
        shapes = expected_tensors(rules)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        back = {}
        for rule in rules:
            for layer in rule.layers():
                back |= to_hugging_face(rule, layer, to_megatron(rule, layer, tensors.get))
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_full_size_has_the_published_number_of_parameters_and_names():
    """Counts of the released model with padded heads: 79.38 B in all."""
    from nvlm.config import load_config

    path = small_folders.REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml"
    rules = export_rules(load_config(path).model)
    assert num_parameters(rules) == 79_379_593_344
    shapes = expected_tensors(rules)
    assert shapes["vision_model.encoder.layers.44.attn.qkv.weight"] == (12288, 3200)
    assert shapes["vision_model.encoder.layers.0.attn.q_norm.weight"] == (4096,)
    assert shapes["mlp1.1.weight"] == (29568, 12800)
    assert shapes["mlp1.3.weight"] == (8192, 29568)
    assert shapes["language_model.model.layers.79.self_attn.k_proj.weight"] == (1024, 8192)
    assert shapes["language_model.lm_head.weight"] == (152064, 8192)
