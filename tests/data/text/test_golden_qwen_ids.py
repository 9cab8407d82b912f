"""Token ids with Qwen's own vocabulary, against the ids published for NVLM-D.

The ids were computed once from Qwen's byte-pair ranks; the special tokens are Qwen2.5's.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from helpers.qwen_tokenizer import build_qwen_tokenizer

from nvlm.batch import IGNORED_LABEL
from nvlm.config import load_config
from nvlm.config.checks import NUM_TOKENS_AROUND_IMAGE
from nvlm.data.images.tiling import candidate_grids
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.encode import SampleEncoder
from nvlm.sizes.visual import TileTags, VisualLayout

START, END, PLACEHOLDER = 151644, 151645, 151654
SYSTEM = [START, 8948, 198, 16141, 279, 4755, 13, END, 198]
USER = [START, 872, 198]
ASSISTANT = [START, 77091, 198]
TILE_1 = [27, 21094, 62, 16, 29]
TILE_2 = [27, 21094, 62, 17, 29]
THUMBNAIL = [27, 21094, 19296, 37824, 29]

TEXTS = {
    "<tile_1>": TILE_1,
    "<tile_2>": TILE_2,
    "<tile_6>": [27, 21094, 62, 21, 29],
    "<tile_9>": [27, 21094, 62, 24, 29],
    "<tile_10>": [27, 21094, 62, 16, 15, 29],
    "<tile_01>": [27, 21094, 62, 15, 16, 29],
    "<tile_12>": [27, 21094, 62, 16, 17, 29],
    "<tile_global_thumbnail0>": [27, 21094, 19296, 37824, 15, 29],
    "<tile_x0_y0>": [27, 21094, 3212, 15, 4178, 15, 29],
    "<tile_x11_y00>": [27, 21094, 3212, 16, 16, 4178, 15, 15, 29],
    "<box> (0, 0), (448, 448) </box>": [
        27, 2011, 29, 320, 15, 11, 220, 15, 701, 320, 19, 19, 23, 11, 220, 19, 19, 23, 8, 690, 2011,
        29,
    ],
    "<tile_global_thumbnail>": THUMBNAIL,
    "<tile_global>": [27, 21094, 19296, 29],
    "<Image>": [46465, 29],
    "</Image>": [522, 1906, 29],
    "</Image>\n": [522, 1906, 397],
    "<Image><tile_1>": [46465, 1784, 21094, 62, 16, 29],
    "assistant\n": [77091, 198],
    "user\n": [872, 198],
    "system\nAnswer the questions.": [8948, 198, 16141, 279, 4755, 13],
}  # fmt: skip
QUESTION = [{"role": "user", "content": "<image>\nAnswer the questions."}]


def make_encoder(
    tokenizer: ChatTokenizer,
    tile_tags: TileTags = "1d",
    max_num_tiles: int = 6,
    num_tokens_per_tile: int = 256,
    **settings,
) -> SampleEncoder:
    defaults = {
        "visual": VisualLayout(tile_tags, True, max_num_tiles, 448, num_tokens_per_tile),
        "image_boundary": "merged",
        "system_message": "Answer the questions.",
    }
    return SampleEncoder(tokenizer, **(defaults | settings))


@pytest.mark.parametrize(("text", "ids"), TEXTS.items())
def test_texts(qwen_tokenizer: ChatTokenizer, text: str, ids: list[int]):
    assert qwen_tokenizer.encode(text) == ids


def test_control_tokens(qwen_tokenizer: ChatTokenizer):
    assert (qwen_tokenizer.control_ids["<|im_start|>"], qwen_tokenizer.end_id) == (START, END)
    assert (qwen_tokenizer.image_id, qwen_tokenizer.pad_id) == (PLACEHOLDER, 151643)


@pytest.mark.parametrize(
    ("image_boundary", "lead"),
    [("merged", [46465, 1784, 21094, 62, 16, 29]), ("separate", [46465, 29, *TILE_1])],
)
def test_whole_prompt(qwen_tokenizer: ChatTokenizer, image_boundary: str, lead: list[int]):
    encoder = make_encoder(qwen_tokenizer, image_boundary=image_boundary)
    tokens, image_mask = encoder.encode_prompt(QUESTION, [(2, 1)])
    tile = [PLACEHOLDER] * 256
    question = [16141, 279, 4755, 13]
    expected = (
        SYSTEM + USER + lead + tile + TILE_2 + tile + THUMBNAIL + tile
        + [522, 1906, 397, *question, END, 198, *ASSISTANT]
    )  # fmt: skip
    assert tokens.tolist() == expected
    assert np.array_equal(image_mask, np.array(expected) == PLACEHOLDER)


@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
def test_prompt_code_of_exports(qwen_tokenizer: ChatTokenizer, image_boundary: str):
    from nvlm.convert.hf_files.chat_format import CHATML
    from nvlm.convert.hf_files.prompts import PromptEncoder

    settings = {"image_boundary": image_boundary, "tile_tags": "1d", "use_thumbnail": True}
    config = SimpleNamespace(
        image_token="<|vision_pad|>", max_dynamic_patch=6, chat_format=CHATML, **settings
    )
    exported = PromptEncoder(build_qwen_tokenizer(), config, num_image_token=256)
    ids = exported.conversation(QUESTION[0]["content"], [], [3], "Answer the questions.")
    tokens, _ = make_encoder(qwen_tokenizer, image_boundary=image_boundary).encode_prompt(
        QUESTION, [(2, 1)]
    )
    assert ids == tokens.tolist()


def test_training_ids_and_labels(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, num_tokens_per_tile=2)
    answer = [{"role": "assistant", "content": "Answer the questions."}]
    encoded = encoder.encode(QUESTION + answer, [(1, 1)])
    prompt, _ = encoder.encode_prompt(QUESTION, [(1, 1)])
    trained = [16141, 279, 4755, 13, END, 198]
    assert prompt.tolist()[len(SYSTEM) + len(USER) :][:10] == [
        46465, 1784, 21094, 19296, 37824, 29, PLACEHOLDER, PLACEHOLDER, 522, 1906,
    ]  # fmt: skip
    assert encoded.tokens.tolist() == [*prompt.tolist(), *trained]
    # The last token of the prompt predicts the first of the answer; the last one predicts nothing.
    masked = [IGNORED_LABEL] * (len(prompt) - 1)
    assert encoded.labels.tolist() == [*masked, *trained, IGNORED_LABEL]


@pytest.mark.parametrize(
    ("image_boundary", "length"), [("block", 1832), ("merged", 1831), ("separate", 1832)]
)
def test_longest_image(qwen_tokenizer: ChatTokenizer, image_boundary: str, length: int):
    encoder = make_encoder(qwen_tokenizer, image_boundary=image_boundary, system_message=None)
    with_image, _ = encoder.encode_prompt([{"role": "user", "content": "<image>"}], [(3, 2)])
    without, _ = encoder.encode_prompt([{"role": "user", "content": "x"}], [])
    assert len(with_image) - (len(without) - 1) == length


def test_single_tile_has_only_the_thumbnail_tag(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, image_boundary="separate", system_message=None)
    tokens, _ = encoder.encode_prompt([{"role": "user", "content": "<image>"}], [(1, 1)])
    block = [46465, 29, *THUMBNAIL, *[PLACEHOLDER] * 256, 522, 1906, 29]
    assert tokens.tolist() == [*USER, *block, END, 198, *ASSISTANT]
    assert len(block) == 2 + 261 + 3


@pytest.mark.parametrize("tile_tags", ["none", "1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("max_num_tiles", [1, 6, 9, 10, 12, 100])
def test_tokens_that_the_configuration_reckons_with_per_tile(
    qwen_tokenizer: ChatTokenizer, tile_tags: TileTags, max_num_tiles: int
):
    """Checks of a configuration come before its tokenizer: their tokens per tag must be enough."""
    config = load_config(
        REPOSITORY / "configs" / "run" / "nvlm_d_72b" / "sft.yaml",
        [f"stage.tile_tags={tile_tags}", f"stage.max_num_tiles={max_num_tiles}",
         "stage.sequence_length=32768"],
    )  # fmt: skip
    visual = VisualLayout.from_config(config)
    grids = candidate_grids(max_num_tiles)
    lengths = {len(qwen_tokenizer.encode(tag)) for grid in grids for tag in visual.tags(grid)}
    assert max(lengths) == config.num_tokens_per_tagged_tile - 256
    if tile_tags == "1d":
        assert len(lengths) == 1


@pytest.mark.parametrize("image_boundary", NUM_TOKENS_AROUND_IMAGE)
def test_tokens_that_the_configuration_reckons_with_around_an_image(
    qwen_tokenizer: ChatTokenizer, image_boundary: str
):
    encoder = make_encoder(qwen_tokenizer, image_boundary=image_boundary, system_message=None)
    messages = [
        {"role": "user", "content": "<image>\nWhat"},
        {"role": "assistant", "content": "This"},
    ]
    length = len(encoder.encode(messages, [(3, 2)]).tokens)
    assert length == 7 * (256 + len(TILE_1)) + NUM_TOKENS_AROUND_IMAGE[image_boundary]


def test_grid_tags_of_an_image(qwen_tokenizer: ChatTokenizer):
    encoder = make_encoder(qwen_tokenizer, "2d_grid", system_message=None, num_tokens_per_tile=1)
    tokens, _ = encoder.encode_prompt([{"role": "user", "content": "<image>"}], [(1, 2)])
    below = [27, 21094, 3212, 15, 4178, 16, 29]
    expected = [
        *USER, 46465, 1784, 21094, 3212, 15, 4178, 15, 29, PLACEHOLDER, *below, PLACEHOLDER,
        *THUMBNAIL, PLACEHOLDER, 522, 1906, 29, END, 198, *ASSISTANT,
    ]  # fmt: skip
    assert tokens.tolist() == expected
