"""The decoder against transformers' Qwen2, Qwen3, Llama and Llama 3, and packed documents against
each run alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import published_models, small_model, variants

from nvlm.batch import MicroBatch

DOCUMENTS = [40, 3, 50, 1, 2]
DECODERS = {
    "Qwen2": [],
    "Qwen3": variants.QWEN3,
    "Llama, Yi": variants.YI,
    "Llama 3": variants.LLAMA3,
    "Qwen2 with YaRN": variants.YARN,
}


def documents_of(micro_batch: MicroBatch) -> list[torch.Tensor]:
    starts = micro_batch.cu_seqlens.tolist()
    return [micro_batch.tokens[:, a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_equals_transformers_document_by_document(parallel, decoder, measure):
    config = small_model.small_config(*DECODERS[decoder])
    language = config.model.language
    published = published_models.random_language_model(language)
    model = small_model.build(config, parallel)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = small_model.batch(config, 0, DOCUMENTS, num_tiles=0)
    with torch.no_grad():
        logits = model(micro_batch, return_logits=True)
    expected = torch.cat(
        [published(document).logits for document in documents_of(micro_batch)], dim=1
    )
    losses = model(micro_batch)
    assert expected.abs().max() > 1
    # Measured: at most 8e-6.
    error = float((logits - expected).abs().max())
    truth = f"transformers {type(published).__name__}"
    measure(f"logits of a decoder like {decoder}, largest difference", truth, error, 1e-4)
    expected_losses = torch.nn.functional.cross_entropy(
        expected[0], micro_batch.labels[0], reduction="none"
    )
    torch.testing.assert_close(losses[0], expected_losses, rtol=1e-5, atol=1e-4)

    losses.sum().backward()
    expected_losses.sum().backward()
    worst = published_models.worst_gradient(published, model.language_model, language)
    # Measured: at most 1e-6.
    measure(f"gradients of a decoder like {decoder}, worst tensor", truth, worst, 1e-5)


def test_packed_documents_equal_separate_runs(parallel):
    config = small_model.small_config()
    model = small_model.build(config, parallel)
    packed = small_model.batch(config, 0, [60, 20, 1, 30], num_tiles=2)
    with torch.no_grad():
        together = model(packed, return_logits=True)
        apart = []
        for start, tokens in zip(packed.cu_seqlens.tolist(), documents_of(packed), strict=False):
            length = tokens.shape[1]
            mask = packed.image_mask[:, start : start + length]
            document = MicroBatch(
                tokens=tokens,
                labels=packed.labels[:, start : start + length],
                position_ids=torch.arange(length)[None],
                image_mask=mask,
                cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
                tiles=packed.tiles if mask.any() else packed.tiles[:0],
            )
            apart.append(model(document, return_logits=True))
    error = float((together - torch.cat(apart, dim=1)).abs().max())
    print(f"largest error of packing {error:.2e}")
    # Measured: 3.0e-7.
    assert error < 1e-5


def test_bf16_loss_is_close_to_fp32(parallel):
    losses = {}
    for precision in ("fp32", "bf16"):
        config = small_model.small_config(f"train.precision={precision}")
        model = small_model.build(config, parallel)
        expected_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        assert {parameter.dtype for parameter in model.parameters()} == {expected_dtype}
        micro_batch = small_model.batch(config, 0, [60, 20], num_tiles=2)
        losses[precision] = model(micro_batch)
        losses[precision].mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses["bf16"].dtype == torch.float32
    error = float((losses["bf16"] - losses["fp32"]).abs().max())
    print(f"largest error of a token's loss in bf16 {error:.3f}")
    # Measured: 0.004.
    assert 0 < error < 0.1


def test_text_only_batch_does_not_touch_the_encoder(parallel):
    config = small_model.small_config()
    model = small_model.build(config, parallel)
    expected = model(small_model.batch(config, 0, [30, 10], num_tiles=0))
    with torch.no_grad():
        for module in (model.vision_model, model.vision_projection):
            for parameter in module.parameters():
                # Times zero this would still be no number.
                parameter.fill_(torch.inf)
    losses = model(small_model.batch(config, 0, [30, 10], num_tiles=0))
    assert torch.equal(losses, expected)
    losses.mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("vision_"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all(), name
    assert model.language_model.output_layer.weight.grad.abs().sum() > 0
