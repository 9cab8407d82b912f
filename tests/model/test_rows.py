"""Levels of the encoder that layers of cross-attention read in turn (EVLM), against transformers'
decoder with cross-attention and connectors in plain torch."""

from __future__ import annotations

from itertools import pairwise

import torch
from helpers import beside_batches, published_models, small_model
from helpers.beside_batches import Image
from helpers.plain_parts import below, both_gradients, connected, cross_attended
from torch import Tensor

from nvlm.batch import MicroBatch
from nvlm.config import RunConfig

# Four layers of cross-attention for three levels: floor(i * 3 / 4) of layer i.
IN_TURN = [
    "model.cross_attention.layer_interval=1",
    "model.cross_attention.levels=in_turn",
    "model.vision.num_layers=3",
    "model.vision.feature_layers=[-3, -2, -1]",
    "model.language.init_std=0.1",
    "stage.freeze=[]",
]
LEVEL_OF_LAYER = [0, 0, 1, 2]
# Packed documents, of several images, of none, and of one.
DOCUMENTS = [[4, Image(3), 6, Image(1), 9], [7], [Image(2), 5]]


def with_cross_attention(published, config: RunConfig, levels: list[Tensor], weights: dict) -> dict:
    """Hooks that add cross-attention behind each self-attention; `sights`, for them, of the
    document that is asked next."""
    language, of_document = config.model.language, {}
    groups = config.model.num_cross_attention_groups
    sizes = (language.num_attention_heads, groups, language.head_dim, language.norm_epsilon)
    names = {
        "norm": "pre_cross_attn_layernorm.weight",
        "q": "cross_attention.linear_q.weight",
        "kv": "cross_attention.linear_kv.weight",
        "proj": "cross_attention.linear_proj.weight",
        "gate": "cross_attn_bda.gate",
    }
    for number, layer in enumerate(published.model.layers):
        prefix = f"language_model.decoder.layers.{number}."
        own = {key: weights[prefix + name] for key, name in names.items()}
        level, entered = levels[LEVEL_OF_LAYER[number]], []

        def enter(_layer, inputs, entered=entered):
            entered[:] = inputs[:1]

        def attend(_attention, _inputs, output, own=own, level=level, entered=entered):
            residual = entered[0][0]
            hidden = residual + output[0][0]
            hidden = cross_attended(hidden, level, own, of_document["sights"], sizes)
            return ((hidden - residual)[None], *output[1:])

        layer.register_forward_pre_hook(enter)
        layer.self_attn.register_forward_hook(attend)
    return of_document


def expected_logits(
    published, config: RunConfig, micro_batch: MicroBatch, levels: list[Tensor], weights: dict
) -> Tensor:
    """[t, v], one document after another."""
    of_document = with_cross_attention(published, config, levels, weights)
    found, beside = [], micro_batch.beside
    assert beside is not None
    for start, end in pairwise(micro_batch.document_starts):
        of_document["sights"] = [
            (first - start, last - start, *seen)
            for first, last, *seen in beside.sights
            if start <= first < end
        ]
        found.append(published(micro_batch.tokens[:, start:end]).logits[0])
    return torch.cat(found)


def test_levels_in_turn_are_those_of_plain_torch(parallel, measure):
    config = beside_batches.config_of("cross_attention", *IN_TURN)
    model, language = small_model.build(config, parallel), config.model.language
    published = published_models.random_language_model(language)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = beside_batches.batch(config, 1, DOCUMENTS)
    logits = model(micro_batch, return_logits=True)[0]

    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
        if name.startswith("vision_projection.") or "cross_att" in name
    }
    epsilon = config.model.connector.norm_epsilon
    features = model.vision_model(micro_batch.tiles).chunk(3, dim=-1)
    levels = [
        connected(level, below(weights, f"vision_projection.{name}"), epsilon)
        for level, name in zip(features, ("level_0.", "level_1.", ""), strict=True)
    ]
    expected = expected_logits(published, config, micro_batch, levels, weights)
    truth = "transformers' Qwen2 and plain torch"
    error = float((logits - expected).detach().abs().max())
    measure("logits with levels in turn, largest difference", truth, error, 1e-3)

    found, wanted = both_gradients(model, logits, expected, weights)
    assert found.keys() == wanted.keys() and len(weights) == 3 * 3 + 4 * 5
    worst = max(float((found[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)
    what = "gradients of encoder, connectors and cross-attention in turn, worst tensor"
    measure(what, truth, worst, 1e-4)


def test_together_is_what_it_was(parallel):
    """One connector for all levels side by side, whose tokens every layer reads."""
    overrides = [one for one in IN_TURN if "levels=" not in one]
    config = beside_batches.config_of("cross_attention", *overrides)
    model = small_model.build(config, parallel)
    named = {name for name, _ in model.vision_projection.named_parameters()}
    assert named == {"norm.weight", "norm.bias", "linear.weight"}
    assert model.vision_projection.linear.weight.shape[1] == 3 * 4 * 160
    assert model.num_levels == 1
