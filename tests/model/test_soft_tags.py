"""Learned tile tags: against text of the same embeddings, and what becomes of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import layout_steps, small_model, switch_steps

from nvlm.checkpoint_io import write_checkpoint
from nvlm.errors import CheckpointError, ConvertError
from nvlm.sizes.tile_tags import KEY

SOFT = switch_steps.SWITCHES["soft tags"]
# Tokens that stand nowhere else, in the place of those of tags.
FIRST_TEXT = 1000


def batches(config) -> tuple:
    """A row with learned tags, and the same with text tokens instead."""
    plain = small_model.batch(config, 1, [60, 20], num_tiles=2)
    plain = replace(plain, tokens=plain.tokens.clamp(max=FIRST_TEXT - 1))
    soft = switch_steps.with_soft_tags(plain)
    is_tag = soft.tokens >= switch_steps.VOCABULARY
    text = torch.where(is_tag, soft.tokens - switch_steps.VOCABULARY + FIRST_TEXT, soft.tokens)
    return soft, replace(soft, tokens=text), is_tag


def test_tags_are_as_text_of_the_same_embeddings(parallel, measure):
    soft_config, plain_config = (
        small_model.small_config("stage.freeze=[]", *switch) for switch in (SOFT, [])
    )
    soft_model = small_model.build(soft_config, parallel)
    plain_model = small_model.build(plain_config, parallel)
    table: Any = plain_model.language_model.embedding.word_embeddings.weight
    tags: Any = soft_model.vision_projection.tile_tags.weight
    assert tags.shape == (7 * 2, soft_config.model.language.hidden_size)
    with torch.no_grad():
        table[FIRST_TEXT : FIRST_TEXT + len(tags)] = tags
    soft, text, is_tag = batches(soft_config)
    assert int(is_tag.sum()) == 6
    found, expected = soft_model(soft), plain_model(text)
    error = float((found - expected).abs().max())
    measure("losses with learned tags", "text tokens of the same embeddings", error, 0)
    found.sum().backward()
    expected.sum().backward()
    rows = table.grad[FIRST_TEXT : FIRST_TEXT + len(tags)]
    assert torch.equal(tags.grad, rows)
    # Of tags 0, 1 and 3; the others stand nowhere.
    is_used = tags.grad.abs().sum(1) > 0
    assert is_used.tolist() == [number in (0, 1, 2, 3, 6, 7) for number in range(len(tags))]
    theirs = dict(plain_model.named_parameters())
    for name, parameter in soft_model.named_parameters():
        if "tile_tags" in name or "word_embeddings" in name:
            continue
        assert torch.equal(parameter.grad, theirs[name].grad), name
    own = soft_model.language_model.embedding.word_embeddings.weight.grad[:FIRST_TEXT]
    assert torch.equal(own, table.grad[:FIRST_TEXT])


class TaggedSteps(layout_steps.TwoSteps):
    """Both steps with images and tags."""

    batches = (switch_steps.micro_batches, switch_steps.micro_batches)


def test_a_resumed_step_is_bit_equal_and_tags_move(parallel, tmp_path):
    overrides = [f"run.dir={tmp_path}", *layout_steps.OPTIMIZER]
    config = switch_steps.config_of("soft tags", *overrides)
    in_one_go = layout_steps.two_steps(config, parallel, save=True, kind=TaggedSteps)
    again = layout_steps.second_step(config, parallel, tmp_path, kind=TaggedSteps)
    assert torch.equal(again["losses"][2], in_one_go["losses"][2])
    ours, theirs = (
        {(key, layer): values for key, layer, _, _, values in result["tensors"]}
        for result in (again, in_one_go)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert float(theirs[KEY, None].abs().max()) > 1e-4


def checkpoint_of(parallel, target, *overrides: str):
    config = small_model.small_config(*overrides)
    model = small_model.build(config, parallel)
    return write_checkpoint(target, {"model": model.sharded_state_dict()}, config), model


def test_tags_begin_anew_from_a_checkpoint_without(parallel, tmp_path):
    from nvlm.model.parts.initialize import initial_tensor
    from nvlm.rows import Place
    from nvlm.sizes.tile_tags import tile_tag_rows
    from nvlm.train.checkpoint import find_initial_weights
    from nvlm.train.training import build_with_weights

    checkpoint, saved = checkpoint_of(parallel, tmp_path / "plain")
    config = small_model.small_config(*SOFT, f"checkpoint.load={checkpoint}")
    assert find_initial_weights(config) == checkpoint
    (model,) = build_with_weights(config, parallel, checkpoint)
    (row,) = tile_tag_rows(config)
    drawn = initial_tensor(config.train.seed, row, Place())
    assert torch.equal(dict(model.named_parameters())[KEY], drawn)
    theirs = dict(saved.named_parameters())
    for name, parameter in model.named_parameters():
        assert "tile_tags" in name or torch.equal(parameter, theirs[name]), name


def test_tags_go_on_where_they_mean_the_same_alone(parallel, tmp_path):
    from nvlm.train.checkpoint import find_initial_weights
    from nvlm.train.training import build_with_weights

    checkpoint, saved = checkpoint_of(parallel, tmp_path / "soft", *SOFT)
    config = small_model.small_config(*SOFT, f"checkpoint.load={checkpoint}")
    find_initial_weights(config)
    (model,) = build_with_weights(config, parallel, checkpoint)
    for (name, ours), theirs in zip(model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for other in ([], [*SOFT, "stage.max_num_tiles=4"], [SOFT[0]]):
        config = small_model.small_config(*other, f"checkpoint.load={checkpoint}")
        with pytest.raises(CheckpointError, match="its tile tags are learned vectors of stage"):
            find_initial_weights(config)


def test_conversions_keep_them_or_say_why_not(parallel, tmp_path):
    from nvlm.convert.adapters.merge import merge_adapters
    from nvlm.convert.adapters.to_peft import convert_to_peft
    from nvlm.convert.megatron.reader import CheckpointReader
    from nvlm.convert.to_hf import convert_to_hf
    from nvlm.convert.verify import verify

    adapters = "stage.adapters={'language_model.*.linear_qkv.weight': {rank: 4}}"
    checkpoint, _ = checkpoint_of(parallel, tmp_path / "adapted", *SOFT, adapters)
    with pytest.raises(ConvertError, match=r"has learned tile tags .* `nvlm convert merge"):
        convert_to_peft(checkpoint, tmp_path / "peft")
    merged = merge_adapters(checkpoint, tmp_path / "merged")
    assert KEY in CheckpointReader(merged)
    with pytest.raises(ConvertError, match="tile_tags soft: exported models"):
        convert_to_hf(merged, tmp_path / "export")
    with pytest.raises(ConvertError, match="no Hugging Face folder has"):
        verify(merged, merged)
