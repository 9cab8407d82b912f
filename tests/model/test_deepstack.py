"""Features of encoder layers behind decoder layers, against transformers' decoder with hooks."""

from __future__ import annotations

from functools import partial

import torch
from helpers import published_models, small_model
from helpers.plain_parts import below, connected
from torch import Tensor

# Layers 1 and 2 of the encoder behind layers 1 and 2 of the decoder, 3 in the decoder's row.
DEEPSTACK = [
    "model.deepstack=true",
    "model.vision.num_layers=3",
    "model.vision.feature_layers=[-3, -2, -1]",
    "stage.freeze=[]",
]


def test_logits_and_gradients_are_those_of_hooks_in_transformers(parallel, measure):
    config = small_model.small_config(*DEEPSTACK)
    model, language = small_model.build(config, parallel), config.model.language
    published = published_models.random_language_model(language)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = small_model.batch(config, 0, [60], num_tiles=2)
    logits = model(micro_batch, return_logits=True)

    epsilon = config.model.connector.norm_epsilon
    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.vision_projection.named_parameters()
    }

    first, second, last = model.vision_model(micro_batch.tiles).chunk(3, dim=-1)
    row = published.get_input_embeddings()(micro_batch.tokens)[0]
    places = micro_batch.image_positions
    row = row.index_copy(0, places, connected(last, weights, epsilon))

    def add(level: Tensor, prefix: str, _module, _inputs, output: Tensor) -> Tensor:
        return output.index_add(1, places, connected(level, below(weights, prefix), epsilon)[None])

    for number, level in enumerate((first, second)):
        hook = partial(add, level, f"deepstack_{number}.")
        published.model.layers[number].register_forward_hook(hook)
    expected = published(inputs_embeds=row[None]).logits
    truth = "transformers' Qwen2 with hooks"
    error = float((logits - expected).detach().abs().max())
    measure("logits with deepstack, largest difference", truth, error, 1e-4)

    generator = torch.Generator().manual_seed(1)
    weighting = torch.randn(expected.shape, generator=generator)
    (expected * weighting).sum().backward()
    wanted = {
        f"vision_model.{name}": parameter.grad.clone()
        for name, parameter in model.vision_model.named_parameters()
    }
    wanted |= {f"vision_projection.{name}": weight.grad for name, weight in weights.items()}
    model.zero_grad()
    (logits * weighting).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if name in wanted}
    assert found.keys() == wanted.keys() and len(weights) == 3 * 4
    # Heads of zeros have none.
    worst = max(float((found[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)
    measure("gradients of encoder and connectors, worst tensor", truth, worst, 1e-5)


def test_text_alone_is_the_decoders(parallel):
    """And the same whatever the connectors are: nothing is added where there is no image."""
    config = small_model.small_config(*DEEPSTACK)
    model = small_model.build(config, parallel)
    text = small_model.batch(config, 0, [40, 20], num_tiles=0)
    with torch.no_grad():
        before = model(text, return_logits=True)
        for parameter in model.vision_projection.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(model(text, return_logits=True), before)
        images = small_model.batch(config, 0, [60], num_tiles=2)
        assert model(images, return_logits=True).isnan().any()
