"""Gated cross-attention against plain torch, and who sees which tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import beside_batches, layout_steps, plain_parts, small_model
from helpers.beside_batches import FUSIONS, Image
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts.cross_attention import attend_to_sights
from nvlm.model.parts.names import named_modules
from nvlm.parallel.groups import Parallel

# Without this scores are so small that every token sees the mean of all values.
LARGE_WEIGHTS = "model.language.init_std=0.2"
IMAGES = [[4, Image(3), 6, Image(1), 9], [7], [Image(2), 5]]


def first_layer(model):
    """The first layer with cross-attention."""
    return model.language_model.decoder.layers[1]


def logits(model, micro_batch) -> Tensor:
    with torch.no_grad():
        return model(micro_batch, return_logits=True)[0]


@pytest.mark.parametrize("num_query_groups", [None, 1, 8])
def test_layer_equals_plain_torch(num_query_groups, parallel: Parallel, measure):
    setting = "null" if num_query_groups is None else num_query_groups
    overrides = [LARGE_WEIGHTS, f"model.cross_attention.num_query_groups={setting}"]
    config = beside_batches.config_of("cross_attention", *overrides)
    model = small_model.build(config, parallel)
    layer, language = first_layer(model), config.model.language
    micro_batch = beside_batches.batch(config, 1, IMAGES)
    beside = micro_batch.beside
    assert beside is not None
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(length, language.hidden_size, generator=generator).requires_grad_()
        for length in (micro_batch.tokens.shape[1], beside.tokens.shape[1])
    ]
    modules = {
        "norm": layer.pre_cross_attn_layernorm.weight,
        "q": layer.cross_attention.linear_q.weight,
        "kv": layer.cross_attention.linear_kv.weight,
        "proj": layer.cross_attention.linear_proj.weight,
        "gate": layer.cross_attn_bda.gate,
    }

    def ours(hidden, row_beside):
        normed = layer.pre_cross_attn_layernorm(hidden[:, None])
        branch = layer.cross_attention(
            normed,
            attention_mask=torch.tensor(beside.sights),
            key_value_states=row_beside[:, None],
        )
        return layer.cross_attn_bda(True, False)(branch, hidden[:, None], 0.0)[:, 0]

    weight = torch.randn(inputs[0].shape, generator=generator)
    found = ours(*inputs)
    gradients = torch.autograd.grad((found * weight).sum(), [*inputs, *modules.values()])
    groups = config.model.num_cross_attention_groups
    sizes = (language.num_attention_heads, groups, language.head_dim, language.norm_epsilon)
    exact = [tensor.detach().double().requires_grad_() for tensor in [*inputs, *modules.values()]]
    weights = dict(zip(modules, exact[2:], strict=True))
    expected = plain_parts.cross_attended(exact[0], exact[1], weights, beside.sights, sizes)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), exact)
    for name, one, other in zip(
        ("output", "hidden", "beside", *modules),
        (found, *gradients),
        (expected, *wanted),
        strict=True,
    ):
        error = float((one.double() - other).norm() / other.norm())
        what = f"cross-attention's {name}, {setting} groups"
        measure(what, "plain torch in fp64", error, 1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_texts_have_the_logits_of_the_decoder_alone(fusion, parallel: Parallel):
    config = beside_batches.config_of(fusion)
    model = small_model.build(config, parallel)
    decoder_only = small_model.build(layout_steps.config_of(), parallel)
    texts = beside_batches.batch(config, 1, [[20], [30], [50]])
    alone = logits(decoder_only, replace(texts, beside=None))
    assert torch.equal(logits(model, texts), alone)
    # Beside a document with images too.
    images = beside_batches.batch(config, 2, [[4, Image(2), 3]])
    length, num_images = texts.tokens.shape[1], images.tokens.shape[1]
    mixed = beside_batches.batch(config, 2, [[length - num_images - 30], [30], [4, Image(2), 3]])
    stop = length - num_images
    mixed.tokens[0, :stop] = texts.tokens[0, :stop]
    starts = torch.tensor([0, stop - 30, stop, length], dtype=torch.int32)
    assert torch.equal(starts, mixed.cu_seqlens)
    with_images = logits(model, mixed)
    same_documents = replace(
        mixed, beside=None, tiles=mixed.tiles[:0], image_positions=mixed.image_positions[:0]
    )
    assert torch.equal(with_images[:stop], logits(decoder_only, same_documents)[:stop])
    assert not torch.equal(with_images[stop:], logits(decoder_only, same_documents)[stop:])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gates_of_zero_leave_the_decoder_as_it_is(fusion, parallel: Parallel):
    config = beside_batches.config_of(fusion)
    model = small_model.build(config, parallel)
    micro_batch = beside_batches.batch(config, 1, [[4, Image(3), 9]])
    gates = [m.gate for _, m in named_modules(model) if hasattr(m, "gate")]
    assert len(gates) == 2
    before = logits(model, micro_batch)
    for gate in gates:
        gate.data.zero_()
    closed = logits(model, micro_batch)
    assert not torch.equal(closed, before)
    blind = replace(micro_batch, beside=replace(micro_batch.beside, sights=()))
    assert torch.equal(closed, logits(model, blind))


def changed_rows(model, micro_batch, tile: int) -> set[int]:
    """Tokens whose first cross-attention output changes with the pixels of a tile."""
    outputs = []
    hook = first_layer(model).cross_attention.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output[0][:, 0].clone())
    )
    tiles = micro_batch.tiles.clone()
    tiles[tile] = 255 - tiles[tile]
    logits(model, micro_batch)
    logits(model, replace(micro_batch, tiles=tiles))
    hook.remove()
    return set((outputs[0] != outputs[1]).any(-1).nonzero()[:, 0].tolist())


# Rows of IMAGES, written down by hand. NVLM-X: text 0 to 3, <Image> 4, a tag for each two from 5
# on, </Image> 11, text, <Image> 18, tag 19 and 20, </Image> 21, text up to 30; a text; in the third
# document <Image> 38, tags 39 to 42, </Image> 43, text up to 48. NVLM-H: text 0 to 3, <Image> 4,
# tag 5 and 6, the thumbnail up to 22, </Image> 23, and so on up to 58; the third document ends with
# </Image> 85 and text up to 90. Its thumbnails are in the decoder's row, where all is mixed.
SEEN_BY = {
    ("cross_attention", 0): {5, 6, *range(11, 19), *range(21, 31)},
    ("cross_attention", 1): {7, 8, *range(11, 19), *range(21, 31)},
    ("cross_attention", 2): {9, 10, *range(11, 19), *range(21, 31)},
    ("cross_attention", 3): {19, 20, *range(21, 31)},
    ("cross_attention", 4): {39, 40, *range(43, 49)},
    ("cross_attention", 5): {41, 42, *range(43, 49)},
    ("hybrid", 0): {*range(23, 59)},
    ("hybrid", 1): {*range(23, 59)},
    ("hybrid", 4): {*range(85, 91)},
}


@pytest.mark.parametrize(("fusion", "tile"), SEEN_BY)
def test_who_sees_a_tile(fusion, tile, parallel: Parallel):
    """A tag of NVLM-X its tile only, all later text of the document every tile."""
    config = beside_batches.config_of(fusion, LARGE_WEIGHTS)
    model = small_model.build(config, parallel)
    micro_batch = beside_batches.batch(config, 1, IMAGES)
    assert changed_rows(model, micro_batch, tile) == SEEN_BY[fusion, tile]


def test_stretches_alike_are_attended_to_in_one_call(parallel: Parallel, monkeypatch):
    """Tags are many: a call for each would take longer than what it computes."""
    calls = []
    attend = functional.scaled_dot_product_attention

    def counted(query, *arguments, **named):
        calls.append(len(query))
        return attend(query, *arguments, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(20, 4, 8, generator=generator)
    key, value = torch.randn(2, 24, 2, 8, generator=generator)
    sights = [(1, 3, 0, 8), (3, 5, 8, 16), (5, 7, 16, 24), (7, 12, 0, 24), (14, 20, 0, 24)]
    out = attend_to_sights(query, key, value, sights)
    assert sorted(calls) == [1, 1, 3]
    one_by_one = torch.zeros_like(out)
    for sight in sights:
        start, end, _, _ = sight
        one_by_one[start:end] = attend_to_sights(query, key, value, [sight])[start:end]
    torch.testing.assert_close(out, one_by_one)
    assert not out[[0, 12, 13]].any()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("granularity", ["selective", "full"])
def test_recomputation_gives_the_same_gradients(granularity, fusion, parallel: Parallel, measure):
    def step(*overrides: str) -> dict:
        config = beside_batches.config_of(fusion, LARGE_WEIGHTS, "stage.freeze=[]", *overrides)
        chunks = layout_steps.wrapped(small_model.build_chunks(config, parallel))
        micro_batches = [beside_batches.batch(config, 1, IMAGES)]
        return layout_steps.losses_and_gradients(chunks, micro_batches, parallel)

    kept = step()
    recomputed = step(f"train.recompute.language.granularity={granularity}")
    assert torch.equal(recomputed["losses"][0], kept["losses"][0])
    gradients, expected = (layout_steps.assemble([result]) for result in (recomputed, kept))
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-7, msg=str(key))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_cross_attention_and_projector_train(fusion, parallel: Parallel):
    """As the paper's pretraining has it, and under full recomputation, where inputs need none."""
    config = beside_batches.config_of(
        fusion,
        'stage.freeze=["vision_model.*","language_model.*","!*cross_att*"]',
        "train.recompute.language.granularity=full",
    )
    (model,) = small_model.build_chunks(config, parallel)
    layout_steps.freeze([model], config, parallel)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("vision_projection.") or "cross_att" in name
    }
    chunks = layout_steps.wrapped([model])
    batches = [beside_batches.batch(config, 1, IMAGES)]
    result = layout_steps.losses_and_gradients(chunks, batches, parallel)
    gradients = layout_steps.assemble([result])
    assert len(gradients) == len(training)
    for key, gradient in gradients.items():
        assert gradient.norm() > 0, key


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("documents", [[[20], [30]], [[9, Image(2), 5]]])
def test_where_nothing_is_seen_parameters_still_get_zeros(documents, fusion, parallel: Parallel):
    """Where gradients are reduced during the passes, each process comes by every parameter."""
    config = beside_batches.config_of(fusion)
    model = small_model.build(config, parallel)
    micro_batch = beside_batches.batch(config, 1, documents)
    assert micro_batch.beside is not None
    micro_batch = replace(micro_batch, beside=replace(micro_batch.beside, sights=()))
    own = [(name, p) for name, p in model.named_parameters() if "cross_att" in name]
    losses = model(micro_batch)
    losses.sum().backward()
    assert len(own) == 10 and all(parameter.grad is None for _, parameter in own)
    model.overlaps_data_parallelism = True
    assert torch.equal(model(micro_batch), losses)
    model(micro_batch).sum().backward()
    for name, parameter in own:
        assert parameter.grad is not None and not parameter.grad.any(), name
    for name, parameter in model.vision_projection.named_parameters():
        assert parameter.grad is not None, name
