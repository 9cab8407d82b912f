"""What stands beside the decoder's tokens, which of them see which part of it, and golden ids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvlm.batch import Beside, MicroBatch, check_micro_batch
from nvlm.config.schema import Fusion
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.samples.kinds import Sample
from nvlm.data.samples.sample import Messages
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, TileTags, VisualLayout

START, END, PLACEHOLDER = 151644, 151645, 151654
USER = [START, 872, 198]
ANSWER = [END, 198, START, 77091, 198]
IMAGE, IMAGE_END = [46465, 29], [522, 1906, 29]
TILE_1 = [27, 21094, 62, 16, 29]
TILE_2 = [27, 21094, 62, 17, 29]
THUMBNAIL = [27, 21094, 19296, 37824, 29]
TILE = [PLACEHOLDER] * 3


def make_encoder(
    tokenizer: ChatTokenizer,
    fusion: Fusion,
    image_boundary: str = "block",
    tile_tags: TileTags = "1d",
) -> SampleEncoder:
    visual = VisualLayout(tile_tags, True, 6, 112, num_tokens_per_tile=3, fusion=fusion)
    return SampleEncoder(
        tokenizer, visual=visual, image_boundary=image_boundary, system_message=None
    )


def asked(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def test_tokens_of_cross_attention(qwen_tokenizer: ChatTokenizer):
    """Tags without placeholders; each sees its tile, and what follows sees all three."""
    encoder = make_encoder(qwen_tokenizer, "cross_attention")
    tokens, image_mask, beside = encoder.encode_prompt_beside(asked("<image>"), [(2, 1)])
    before, block = [*USER, *IMAGE], [*TILE_1, *TILE_2, *THUMBNAIL]
    assert tokens.tolist() == [*before, *block, *IMAGE_END, 198, *ANSWER]
    assert not image_mask.any()
    assert beside is not None
    assert beside.tokens.tolist() == [*TILE, *TILE, *TILE]
    assert beside.image_mask.all()
    assert (beside.tiles.tolist(), beside.num_tiles) == ([0, 1, 2], 3)
    assert beside.sights == ((5, 10, 0, 3), (10, 15, 3, 6), (15, 20, 6, 9), (20, 29, 0, 9))


def test_tokens_of_hybrid(qwen_tokenizer: ChatTokenizer):
    """The thumbnail in the sequence as an image of one tile is; tags and tiles beside it."""
    encoder = make_encoder(qwen_tokenizer, "hybrid")
    tokens, image_mask, beside = encoder.encode_prompt_beside(asked("<image>"), [(2, 1)])
    lone, lone_mask, nothing = encoder.encode_prompt_beside(asked("<image>"), [(1, 1)])
    # `<Image>` and the tag are one text, as in NVLM-D.
    before = [*USER, 46465, 1784, 21094, 19296, 37824, 29]
    assert tokens.tolist() == [*before, *TILE, *IMAGE_END, 198, *ANSWER] == lone.tolist()
    assert image_mask.nonzero()[0].tolist() == [9, 10, 11] == lone_mask.nonzero()[0].tolist()
    plain = make_encoder(qwen_tokenizer, "decoder_only").encode_prompt(asked("<image>"), [(1, 1)])
    assert np.array_equal(plain[0], lone)
    assert beside is not None and nothing is not None
    assert beside.tokens.tolist() == [*TILE_1, *TILE, *TILE_2, *TILE]
    assert beside.image_mask.nonzero()[0].tolist() == [5, 6, 7, 13, 14, 15]
    assert (beside.tiles.tolist(), beside.num_tiles) == ([0, 1], 3)
    assert beside.sights == ((12, 21, 0, 16),)
    assert (len(nothing.tokens), len(nothing.tiles), nothing.num_tiles) == (0, 0, 1)
    assert nothing.sights == ()


@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
@pytest.mark.parametrize("tile_tags", ["none", "1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("fusion", ["cross_attention", "hybrid"])
@pytest.mark.parametrize("role", ["user", "document"])
def test_who_sees_what(
    qwen_tokenizer: ChatTokenizer,
    fusion: Fusion,
    tile_tags: TileTags,
    image_boundary: str,
    role: str,
):
    """Against the rule itself, found in the text of the tokens, of several images and text."""
    encoder = make_encoder(qwen_tokenizer, fusion, image_boundary, tile_tags)
    visual, grids = encoder.visual, [(1, 2), (1, 1), (3, 2)]
    content = "Two <image> cats <image><image>\nWhy?"
    encoded = encoder.encode([{"role": role, "content": content}], grids)
    beside = encoded.beside
    assert beside is not None
    texts = qwen_tokenizer.decode_each(encoded.tokens.tolist())
    expected: list[tuple[int, int]] = []
    starts, ends = _places_beside(encoder, grids)
    image, seen, place = 0, 0, 0
    while place < len(texts):
        # Up to the token that ends with `<Image`.
        if "".join(texts[: place + 1]).count("<Image") == image:
            expected.append((0, seen))
            place += 1
            continue
        if fusion == "cross_attention":
            expected += [(0, seen)] * 2  # and `>`
            place += 2
            for tile, tag in enumerate(visual.tags(grids[image])):
                size = len(qwen_tokenizer.encode(tag))
                assert "".join(texts[place : place + size]) == tag
                expected += [starts[image][tile]] * size
                place += size
        else:
            while not encoded.image_mask[place]:
                expected.append((0, seen))
                place += 1
            expected += [(0, seen)] * 3
            place += 3
        seen = ends[image]
        image += 1
    found = [(0, 0)] * len(texts)
    for start, end, first, last in beside.sights:
        found[start:end] = [(first, last)] * (end - start)
    assert [(a, b) if b > a else (0, 0) for a, b in expected] == found
    assert image == 3
    assert seen == len(beside.tokens)


def _places_beside(encoder: SampleEncoder, grids: list[Grid]):
    """Of each image: where each tile beside is, and where the last one ends."""
    starts, ends, place = [], [], 0
    for grid in grids:
        starts.append([])
        for tag in encoder.visual.tags_beside(grid):
            size = 3 + (len(encoder.tokenizer.encode(tag)) if tag else 0)
            starts[-1].append((place, place + size))
            place += size
        ends.append(place)
    return starts, ends


@pytest.mark.parametrize("fusion", ["cross_attention", "hybrid"])
@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
def test_measured_length_is_the_encoded_length(
    qwen_tokenizer: ChatTokenizer, fusion: Fusion, image_boundary: str
):
    encoder = make_encoder(qwen_tokenizer, fusion, image_boundary)
    messages, grids = asked("<image>\nTwo <image> cats <image>?"), [(2, 1), (1, 1), (3, 2)]
    messages += [{"role": "assistant", "content": "Yes."}]
    (lengths,) = encoder.measure([Sample("", "", messages)])
    tags = encoder.tag_lengths(6)
    assert lengths.turn_images == [3]
    length = lengths.turn_tokens[0]
    for image, grid in enumerate(grids):
        leads = lengths.leads_single if grid == (1, 1) else lengths.leads_multiple
        length += leads[image] + tags[grid] + 3 * (fusion == "hybrid")
    assert length == len(encoder.encode(messages, grids).tokens)


@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
@pytest.mark.parametrize("tile_tags", ["none", "1d", "2d_box"])
def test_stacked_tiles_leave_the_row_that_hybrid_has(
    qwen_tokenizer: ChatTokenizer, tile_tags: TileTags, image_boundary: str
):
    """Thumbnails, with their tags, and nothing beside them."""
    hybrid = make_encoder(qwen_tokenizer, "hybrid", image_boundary, tile_tags)
    encoder = make_encoder(qwen_tokenizer, "decoder_only", image_boundary, tile_tags)
    plain = encoder.template_settings()
    encoder.visual = replace(encoder.visual, stacks_tiles=True)
    messages, grids = asked("<image>\nTwo <image> cats <image>?"), [(2, 1), (1, 1), (3, 2)]
    messages += [{"role": "assistant", "content": "Yes."}]
    found, expected = encoder.encode(messages, grids), hybrid.encode(messages, grids)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.image_mask.tolist() == expected.image_mask.tolist()
    assert found.beside is None and found.grids == (*grids,) and expected.grids == ()
    sample = Sample("", "", messages)
    assert encoder.measure([sample]) == hybrid.measure([sample])
    assert encoder.tag_lengths(6) == hybrid.tag_lengths(6)
    assert encoder.template_settings() == plain | {"model.deepstack": "tiles"}


def test_another_fusion_is_another_index(qwen_tokenizer: ChatTokenizer):
    plain, *others = (
        make_encoder(qwen_tokenizer, fusion).template_settings()
        for fusion in ("decoder_only", "cross_attention", "hybrid")
    )
    assert "model.fusion" not in plain  # as indexes say that are older than the others
    assert [other.pop("model.fusion") for other in others] == ["cross_attention", "hybrid"]
    assert others == [plain, plain]


@pytest.fixture
def packed(qwen_tokenizer: ChatTokenizer) -> tuple[MicroBatch, VisualLayout]:
    """Two sequences of NVLM-H: two samples with images and one of text; one with an image."""
    encoder = make_encoder(qwen_tokenizer, "hybrid")
    grids: list[list[Grid]] = [[(2, 1)], [], [(1, 1), (1, 2)], [(2, 1)]]
    samples = [
        PackedSample(
            f"s{n}",
            encoder.encode(asked("<image>" * len(own) + "What?"), own),
            np.zeros((sum(map(encoder.visual.num_tiles, own)), 3, 4, 4), np.uint8),
        )
        for n, own in enumerate(grids)
    ]
    batch = build_micro_batch([samples[:3], samples[3:]], 128, 4, 0, has_beside=True)
    return batch, encoder.visual


def test_rows_beside_are_one_row(packed: tuple[MicroBatch, VisualLayout]):
    batch, visual = packed
    check_micro_batch(batch, visual)
    beside = batch.beside
    assert beside is not None
    assert beside.tokens.shape == (1, 3 * 16)
    assert beside.tokens[0, beside.image_positions].unique().tolist() == [PLACEHOLDER]
    # Of the seven and three tiles all but the thumbnails and the single tile.
    assert beside.tiles.tolist() == [0, 1, 4, 5, 7, 8]
    starts, text = batch.cu_seqlens.tolist(), [s.item() for s in batch.cu_seqlens[1:3]]
    assert [(first, last) for *_, first, last in beside.sights] == [(0, 16), (16, 32), (32, 48)]
    documents = [max(s for s in starts if s <= start) for start, *_ in beside.sights]
    assert documents == [0, text[1], 128]
    assert [end for _, end, *_ in beside.sights] == [text[0], starts[3], starts[5]]
    moved = batch.each(lambda tensor: tensor.clone())
    assert moved.beside is not None and moved.beside.tokens is not beside.tokens
    assert batch.without_tiles().beside is beside


def test_samples_without_images_have_an_empty_row(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, "cross_attention")
    sample = PackedSample("t", encoder.encode(asked("Why?"), []), np.zeros((0, 3, 4, 4), np.uint8))
    batch = build_micro_batch([[sample], []], 64, 4, 0, has_beside=True)
    check_micro_batch(batch, encoder.visual)
    assert batch.beside is not None
    assert (batch.beside.tokens.shape, batch.beside.sights) == ((1, 0), ())


def change(beside: Beside, **values) -> Beside:
    return replace(beside, **values)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda b: None, "a row not beside the decoder's with model.fusion hybrid"),
        (lambda b: change(b, tiles=b.tiles[1:]), "12 image placeholders for 5 tiles x 3 tokens"),
        (lambda b: change(b, image_positions=b.image_positions[1:]), "17 image placeholders be"),
        (lambda b: change(b, tiles=b.tiles.flip(0)), r"tiles \[8, 7, 5, 4, 1, 0\] beside, of 10"),
        (lambda b: change(b, tiles=b.tiles + 2), "beside, of 10"),
        (lambda b: change(b, sights=b.sights[::-1]), "out of order or not their document's"),
        (lambda b: change(b, sights=((0, 90, 0, 16),)), "tokens 0 to 90 see 0 to 16"),
        (lambda b: change(b, sights=((14, 15, 0, 49),)), "tokens 14 to 15 see 0 to 49"),
        (lambda b: change(b, sights=((14, 15, 9, 9),)), "tokens 14 to 15 see 9 to 9"),
        # The second document sees what the first one has.
        (lambda b: change(b, sights=(b.sights[0], (128, 129, 15, 20))), "128 to 129 see 15 to 20"),
    ],
)
def test_rows_that_disagree(packed: tuple[MicroBatch, VisualLayout], broken, message: str):
    batch, visual = packed
    with pytest.raises(DataError, match=message):
        check_micro_batch(replace(batch, beside=broken(batch.beside)), visual)


def test_tokens_that_follow_see_what_the_last_one_sees(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, "cross_attention")
    beside = encoder.encode(asked("<image>"), [(1, 1)]).beside
    assert beside is not None
    *tags, (start, end, *seen) = beside.sights
    assert beside.followed_by(7).sights == (*tags, (start, end + 7, *seen))
    text = encoder.encode(asked("Why?"), []).beside
    assert text is not None and text.followed_by(7).sights == ()


def test_what_a_decoder_alone_reads_has_no_row(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, "decoder_only")
    encoded = encoder.encode(asked("<image>"), [(1, 1)])
    assert encoded.beside is None
    sample = PackedSample("s", encoded, np.zeros((1, 3, 4, 4), np.uint8))
    batch = build_micro_batch([[sample]], 64, 4, 0)
    assert batch.beside is None
    beside = Beside(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), torch.zeros(0, dtype=torch.long), ()
    )
    with pytest.raises(DataError, match=r"with model\.fusion decoder_only"):
        check_micro_batch(replace(batch, beside=beside), encoder.visual)
