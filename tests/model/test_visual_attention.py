"""Image tokens that see each other both ways, against masks in fp64 and transformers' Qwen2."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import published_models, small_model
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from nvlm.batch import runs_of
from nvlm.model.parts.attention import PackedDocuments, SdpaAttention

BOTH_WAYS = "model.visual_attention=bidirectional"
STARTS = (0, 12, 13, 30)
RUNS = ((2, 5), (6, 8), (14, 20), (28, 30))


def mask_of(starts: tuple[int, ...], runs: tuple[tuple[int, int], ...]) -> Tensor:
    """[t, t] bool: what each token sees."""
    mask = torch.zeros(starts[-1], starts[-1], dtype=torch.bool)
    for start, end in pairwise(starts):
        mask[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    for start, end in runs:
        mask[start:end, start:end] = True
    return mask


def test_attention_equals_masks_in_fp64(parallel, measure):
    config = small_model.build(small_model.small_config(BOTH_WAYS), parallel).config
    attention = SdpaAttention(config, 1, AttnMaskType.causal, "self")
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(30, heads, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    packed = PackedDocuments(qkv_format="thd", starts=STARTS, image_runs=RUNS)
    found = attention(*inputs, None, packed_seq_params=packed)
    query, key, value = exact[0], *(t.repeat_interleave(2, 1) for t in exact[1:])
    scores = torch.einsum("qhd,khd->hqk", query, key) / 8**0.5
    share = scores.masked_fill(~mask_of(STARTS, RUNS), -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", share, value).flatten(1)
    weight = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), exact)
    for name, one, other in zip(
        ("output", "queries", "keys", "values"),
        (found, *gradients),
        (expected, *wanted),
        strict=True,
    ):
        error = float((one.double() - other).norm() / other.norm())
        measure(f"images seen both ways: {name}", "plain torch in fp64", error, 1e-5)


def test_logits_are_those_of_transformers_with_the_mask(parallel, measure):
    config = small_model.small_config(BOTH_WAYS)
    language = config.model.language
    published = published_models.random_language_model(language)
    model = small_model.build(config, parallel)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = small_model.batch(config, 0, [60], num_tiles=2)
    with torch.no_grad():
        logits = model(micro_batch, return_logits=True)
        row, _ = model._embed(micro_batch)
        assert micro_batch.image_runs
        mask = mask_of((0, 60), micro_batch.image_runs)[None, None]
        expected = published(inputs_embeds=row.transpose(0, 1), attention_mask=mask).logits
        causal = published(inputs_embeds=row.transpose(0, 1)).logits
    assert float((causal - expected).abs().max()) > 0.1
    error = float((logits - expected).abs().max())
    truth = f"transformers {type(published).__name__}, 4-D mask"
    measure("logits of images seen both ways, largest difference", truth, error, 1e-4)
    model.sees_both_ways = False
    with torch.no_grad():
        error = float((model(micro_batch, return_logits=True) - causal).abs().max())
    assert error < 1e-4


def test_a_tag_between_tiles_parts_them(parallel):
    """Each run is what stands together; a run never reaches into another document."""
    assert runs_of([1, 2, 3, 5, 6, 11]) == ((1, 4), (5, 7), (11, 12))
    assert runs_of([]) == ()
    config = small_model.small_config(BOTH_WAYS)
    model = small_model.build(config, parallel)
    whole = small_model.batch(config, 0, [60], num_tiles=2)
    assert whole.image_runs is not None and len(whole.image_runs) == 1
    (start, end), size = whole.image_runs[0], config.model.num_tokens_per_tile
    parted = replace(whole, image_runs=((start, start + size), (start + size, end)))
    with torch.no_grad():
        one, other = (model(batch, return_logits=True)[0] for batch in (whole, parted))
    assert not torch.equal(one[start : start + size], other[start : start + size])


@pytest.mark.parametrize("granularity", ["selective", "full"])
def test_recomputation_gives_the_same_gradients(granularity, parallel):
    def gradients(*overrides: str) -> dict[str, Tensor]:
        config = small_model.small_config(BOTH_WAYS, "stage.freeze=[]", *overrides)
        model = small_model.build(config, parallel)
        model(small_model.batch(config, 0, [60, 20], num_tiles=2)).sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    kept = gradients()
    for name, gradient in gradients(f"train.recompute.language.granularity={granularity}").items():
        torch.testing.assert_close(gradient, kept[name], rtol=1e-5, atol=1e-6, msg=name)
