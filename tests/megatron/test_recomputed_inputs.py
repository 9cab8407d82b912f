"""Why the input of recomputed layers asks for a gradient: else they do not train, silently."""

from __future__ import annotations

from helpers import small_model

from nvlm.model import nvlm_d


def trained_layers(parallel) -> list[bool]:
    """Which of the decoder's layers get a gradient behind frozen embeddings."""
    config = small_model.small_config("train.recompute.language.granularity=full")
    model = small_model.build(config, parallel)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "decoder.layers" in name or "output_layer" in name
    batch = small_model.batch(config, 1, [60, 20], num_tiles=0)
    (model(batch) * batch.weights()).sum().backward()
    return [
        layer.mlp.linear_fc1.weight.grad is not None
        for layer in model.language_model.decoder.layers
    ]


def test_plain_recomputed_layers_do_not_train(parallel, monkeypatch):
    assert trained_layers(parallel) == [True, True]
    monkeypatch.setattr(nvlm_d, "recomputable", lambda hidden, config: hidden)
    assert trained_layers(parallel) == [False, False]
