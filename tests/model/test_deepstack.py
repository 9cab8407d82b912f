"""What is added behind decoder layers, features of encoder layers or tokens of tiles, against
transformers' decoder with hooks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from helpers import published_models, small_model, stacked_batches
from helpers.plain_parts import below, both_gradients, connected
from helpers.stacked_batches import Piece
from torch import Tensor

from nvlm.sizes.visual import Grid

# Layers 1 and 2 of the encoder behind layers 1 and 2 of the decoder, 3 in the decoder's row.
DEEPSTACK = [
    "model.deepstack=levels",
    "model.vision.num_layers=3",
    "model.vision.feature_layers=[-3, -2, -1]",
    "stage.freeze=[]",
]
# Up to six tiles behind as many layers; of one image per document, and of none.
TILES = ["model.deepstack=tiles", "model.language.num_layers=6", "stage.freeze=[]"]
DOCUMENTS: list[list[Piece]] = [[4, (2, 3), 6, (1, 1), 3, (3, 1), 9], [7], [(1, 2), 5]]


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

    weights = {f"vision_projection.{name}": weight for name, weight in weights.items()}
    found, wanted = both_gradients(model, logits, expected, weights)
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


def dealt(tiles_nqh: Tensor, grid: Grid) -> list[Tensor]:
    """[q, h] of each stack, token by token: of row y and column x in the whole image the one that
    the tile there has."""
    columns, rows = grid
    if columns * rows == 1:
        return []
    side = round(tiles_nqh.shape[1] ** 0.5)

    def token(y: int, x: int) -> Tensor:
        (tile_row, row), (tile_column, column) = divmod(y, side), divmod(x, side)
        return tiles_nqh[tile_row * columns + tile_column, row * side + column]

    places = [(i, j) for i in range(side) for j in range(side)]
    return [
        torch.stack([token(i * rows + a, j * columns + b) for i, j in places])
        for a in range(rows)
        for b in range(columns)
    ]


def expected_of_tiles(published, config, micro_batch, visual_nqh: Tensor) -> Tensor:
    """[t, v]: each document by itself, with a hook behind each layer."""
    images: list[list[Tensor]] = []
    start = 0
    for columns, rows in micro_batch.grids:
        number = columns * rows
        stop = start + number + (number > 1)
        tiles = visual_nqh[start:stop]
        images.append([tiles[-1], *dealt(tiles, (columns, rows))])
        start = stop
    of_document: list[tuple[int, list[Tensor]]] = []

    def add(number: int, _module, _inputs, output: Tensor) -> Tensor:
        for place, (_, *stacks) in of_document:
            if number < len(stacks):
                places = torch.arange(place, place + 16)
                output = output.index_add(1, places, stacks[number][None])
        return output

    for number, layer in enumerate(published.model.layers):
        layer.register_forward_hook(partial(add, number))
    logits = []
    firsts = micro_batch.image_positions[::16].tolist()
    for start, end in pairwise(micro_batch.document_starts):
        row = published.get_input_embeddings()(micro_batch.tokens[:, start:end])[0]
        of_document[:] = [
            (first - start, image)
            for first, image in zip(firsts, images, strict=True)
            if start <= first < end
        ]
        for place, (thumbnail, *_) in of_document:
            row = row.index_copy(0, torch.arange(place, place + 16), thumbnail)
        logits.append(published(inputs_embeds=row[None]).logits[0])
    return torch.cat(logits)


def test_tiles_are_added_to_their_thumbnail_as_hooks_do(parallel, measure):
    config = small_model.small_config(*TILES)
    model, language = small_model.build(config, parallel), config.model.language
    published = published_models.random_language_model(language)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = stacked_batches.batch(config, 0, DOCUMENTS)
    logits = model(micro_batch, return_logits=True)[0]

    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.vision_projection.named_parameters()
    }
    features = model.vision_model(micro_batch.tiles)
    visual = connected(features, weights, config.model.connector.norm_epsilon)
    visual = visual.unflatten(0, (len(micro_batch.tiles), -1))
    expected = expected_of_tiles(published, config, micro_batch, visual)
    truth = "transformers' Qwen2 with hooks"
    error = float((logits - expected).detach().abs().max())
    measure("logits with stacked tiles, largest difference", truth, error, 1e-4)

    weights = {f"vision_projection.{name}": weight for name, weight in weights.items()}
    found, wanted = both_gradients(model, logits, expected, weights)
    assert found.keys() == wanted.keys() and len(weights) == 4
    worst = max(float((found[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)
    measure("gradients of encoder and connector with stacked tiles, worst", truth, worst, 1e-5)


def test_images_of_one_tile_are_the_decoders(parallel):
    """Nothing is added to them: logits are those of NVLM-D, bit by bit."""
    config, plain = small_model.small_config(*TILES), small_model.small_config(TILES[1])
    micro_batch = stacked_batches.batch(config, 0, [[4, (1, 1), 9], [(1, 1), 5]])
    with torch.no_grad():
        found, expected = (
            small_model.build(one, parallel)(micro_batch, return_logits=True)
            for one in (config, plain)
        )
    assert torch.equal(found, expected)
