"""Questions after examples, token by token; how many tiles each picture gets."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from helpers import small_model
from PIL import Image

from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import SampleEncoder
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.conversation import converse, final_answer
from nvlm.evaluate.suite.prepare import make_ready
from nvlm.evaluate.suite.settings import Settings

CHARTQA = BENCHMARKS["chartqa"]


def draw(number: int) -> bytes:
    """Twice as wide as high: two tiles and a thumbnail where they fit."""
    pixels = np.random.default_rng(number).integers(0, 256, (64, 128, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def item(number: int) -> Item:
    return Item(f"{number}", f"How many {number}?", [lambda: draw(number)], {"answer": f"{number}"})


def ready(num_shots: int, *overrides: str, max_new_tokens: int = 8, **settings):
    config = small_model.small_config(*overrides)
    encoder = SampleEncoder.from_config(config)
    some = Settings(shots=num_shots, **settings)
    talk = converse(CHARTQA, item(100), [item(number) for number in range(num_shots)], some)
    return make_ready(config, encoder, talk, max_new_tokens, None), config, encoder, talk


def blocks(mask: np.ndarray) -> int:
    """Runs of image placeholders."""
    return int(np.count_nonzero(np.diff(mask.astype(int), prepend=0) == 1))


def test_pictures_and_texts_are_interleaved():
    found, config, encoder, talk = ready(4, "stage.sequence_length=4096", "stage.max_num_tiles=2")
    roles = [turn["role"] for turn in talk.messages]
    assert roles == ["system", *["user", "assistant"] * 4, "user"]
    tile = config.model.num_tokens_per_tile
    per_picture = len(cut_tiles(decode_image(draw(0)), 2, True, config.model.vision.image_size))
    assert per_picture == 3
    assert found.max_num_tiles == [2] * 5
    assert int(found.prompt.image_mask.sum()) == 5 * per_picture * tile
    assert blocks(found.prompt.image_mask) == 5 * per_picture  # a tag before each tile
    size = config.model.vision.image_size
    whole = [cut_tiles(decode_image(draw(n)), 2, True, size) for n in (0, 1, 2, 3, 100)]
    np.testing.assert_array_equal(found.prompt.tiles, np.concatenate(whole))
    assert found.image_hashes == [hashlib.sha256(draw(n)).hexdigest() for n in (0, 1, 2, 3, 100)]
    # Each picture stands before its own question, which stands before its answer.
    ids, mask = found.prompt.tokens, found.prompt.image_mask
    said = "".join(
        "*" if is_image else encoder.tokenizer.decode_each([token])[0]
        for token, is_image in zip(ids.tolist(), mask)
    )
    places = [said.index(f"How many {n}?") for n in (0, 1, 2, 3, 100)]
    assert places == sorted(places)
    for start, end in zip([0, *places], places):
        assert said[start:end].count("*") == per_picture * tile


def test_without_their_pictures_examples_are_texts():
    found, _, _, talk = ready(4, "stage.max_num_tiles=2", shots_text_only=True)
    with_pictures = converse(CHARTQA, item(100), [item(n) for n in range(4)], Settings(shots=4))
    assert len(found.image_hashes) == 1 and len(found.prompt.tiles) == 3
    for turn, other in zip(talk.messages, with_pictures.messages, strict=True):
        is_shot = other is not with_pictures.messages[-1]
        assert turn["content"] == (
            other["content"].removeprefix("<image>\n") if is_shot else other["content"]
        )


def test_examples_pictures_get_fewer_tiles_first():
    lengths = {}
    for sequence_length in (4096, 420, 330, 150):
        found, *_ = ready(4, f"stage.sequence_length={sequence_length}", "stage.max_num_tiles=2")
        lengths[sequence_length] = (found.max_num_tiles, len(found.prompt.tokens))
        assert len(found.prompt.tokens) <= sequence_length or set(found.max_num_tiles) == {1}
    limits = [lengths[key][0] for key in lengths]
    assert limits[0] == [2] * 5
    assert [1, 1, 1, 1, 2] in limits
    assert limits[-1] == [1] * 5


def test_what_the_model_has_no_positions_for_is_skipped():
    with pytest.raises(SampleError, match="with one tile per picture, and 60,000 of the answer"):
        ready(4, max_new_tokens=60_000)


def test_reasoning_is_asked_for_and_left_out_of_the_answer():
    plain = converse(CHARTQA, item(1), [], Settings()).messages[-1]["content"]
    asked = converse(CHARTQA, item(1), [], Settings(chain_of_thought=True)).messages[-1]["content"]
    assert asked.startswith(plain) and "`Answer:`" in asked
    assert final_answer("Answer: 3, no.\nSo 4.\n**Answer:** 4 ", True) == ("4", True)
    assert final_answer("It is 4.", True) == ("It is 4.", False)
    assert final_answer("Answer: 4", False) == ("Answer: 4", True)
