"""Training, exports and the real vLLM make the same token ids of a prompt, with Qwen's vocabulary.

What vLLM gave stands in tests/golden/vllm_prompts.json (see helpers/vllm_prompts.py).
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
from helpers import vllm_expectations, vllm_prompts
from helpers.qwen_tokenizer import build_qwen_tokenizer
from helpers.small_folders import convert_config
from helpers.vllm_prompts import CONTROL_TOKEN, PROMPTS

from nvlm.config.schema import StageConfig
from nvlm.convert.export.tokenizer import chat_template
from nvlm.convert.hf_files.chat_format import CHATML
from nvlm.convert.hf_files.prompts import PromptEncoder
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.encode import SampleEncoder
from nvlm.sizes.visual import VisualLayout

PLACEHOLDER, TOKENS_PER_TILE = "<|vision_pad|>", 16
FED = {name: turns for name, turns in PROMPTS.items() if name != CONTROL_TOKEN}
TABLE = vllm_prompts.read_table()
NEWEST = "0.33.0 block"


@pytest.fixture(scope="module")
def qwen():
    return build_qwen_tokenizer()


def _stage(image_boundary: str) -> StageConfig:
    return convert_config(f"stage.image_boundary={image_boundary}").stage


@cache  # a vocabulary of Qwen's size takes seconds to read
def _sample_encoder(tokenizer, image_boundary: str) -> SampleEncoder:
    return SampleEncoder(
        ChatTokenizer(tokenizer, PLACEHOLDER),
        visual=VisualLayout("1d", True, 6, 112, TOKENS_PER_TILE),
        image_boundary=image_boundary,
        system_message="Answer the questions.",
    )


def _trained(tokenizer, image_boundary: str, name: str) -> list[int]:
    turns = PROMPTS[name]
    encoder = _sample_encoder(tokenizer, image_boundary)
    ids, _ = encoder.encode_prompt(vllm_prompts.messages(turns), vllm_prompts.grids(turns))
    return ids.tolist()


def _num_tiles(name: str) -> list[int]:
    return [c * r + (c * r > 1) for c, r in vllm_prompts.grids(PROMPTS[name])]


@cache
def _prompt_encoder(tokenizer, image_boundary: str) -> PromptEncoder:
    settings = {"image_boundary": image_boundary, "tile_tags": "1d", "use_thumbnail": True}
    config = SimpleNamespace(
        image_token=PLACEHOLDER, max_dynamic_patch=6, chat_format=CHATML, **settings
    )
    return PromptEncoder(tokenizer, config, TOKENS_PER_TILE)


def _chat(tokenizer, image_boundary: str, name: str) -> list[int]:
    """As `chat` of an export has it; a system turn of its own is an argument there."""
    encoder = _prompt_encoder(tokenizer, image_boundary)
    turns = vllm_prompts.messages(PROMPTS[name])
    system = "Answer the questions."
    if turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
    texts = [turn["content"] for turn in turns]
    history = list(zip(texts[:-1:2], texts[1::2]))
    return encoder.conversation(texts[-1], history, _num_tiles(name), system)


def _template(tokenizer, image_boundary: str, name: str) -> list[int]:
    """The template's text, images put into it as vLLM puts them."""
    turns = vllm_prompts.messages(PROMPTS[name])
    template = chat_template(_stage(image_boundary))
    prompt = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    images = [
        vllm_expectations.image_text(tiles, TOKENS_PER_TILE, True) for tiles in _num_tiles(name)
    ]
    return vllm_expectations.place_images(tokenizer, prompt, images)


def test_there_are_fourteen_prompts_and_vllm_was_asked_all():
    assert len(FED) == 14
    assert all(set(rows) == set(PROMPTS) for rows in TABLE.values())


@pytest.mark.parametrize("name", FED)
def test_training_chat_template_and_vllm_agree(qwen, name: str):
    trained = _trained(qwen, "block", name)
    assert TABLE[NEWEST][name] == trained
    assert TABLE["0.29.0 block"][name] == trained
    assert _chat(qwen, "block", name) == trained
    assert _template(qwen, "block", name) == trained


def test_earlier_versions_feed_what_merged_trains(qwen):
    """And find neither an image in the middle of a line nor one before two newlines."""
    rows = TABLE["0.28.0 merged"]
    refused = {name for name in FED if isinstance(rows[name], str)}
    # The second image of `several turns` stands before the end of a turn.
    assert refused == {"begins with a newline", "image in the middle", "several turns"}
    for name in set(FED) - refused:
        assert rows[name] == _trained(qwen, "merged", name) == _chat(qwen, "merged", name), name
        has_image = bool(vllm_prompts.grids(PROMPTS[name]))
        assert (rows[name] != TABLE[NEWEST][name]) == has_image


def test_a_spelled_control_token_is_text_except_in_servers(qwen):
    trained, fed = _trained(qwen, "block", CONTROL_TOKEN), TABLE[NEWEST][CONTROL_TOKEN]
    assert _chat(qwen, "block", CONTROL_TOKEN) == trained
    assert _template(qwen, "block", CONTROL_TOKEN) == fed
    end = qwen.get_vocab()["<|im_end|>"]
    assert (trained.count(end), fed.count(end)) == (2, 3)
    assert qwen.decode(trained) == qwen.decode(fed)


@pytest.mark.parametrize(
    ("content", "lines"),
    {
        "What?": "What?",
        "\nWhat?": "\nWhat?",
        "<image>": "<image>\n",
        "<image>What?": "<image>\nWhat?",
        "<image>\r\n\n What?": "<image>\n What?",
        "What? <image>": "What? \n<image>\n",
        "a\n<image>\n<image><image>\n\n": "a\n<image>\n<image>\n<image>\n",
        "<image> <image>": "<image>\n \n<image>\n",
    }.items(),
)
def test_each_image_has_a_line(qwen, content: str, lines: str):
    """Only newlines beside an image change, and what is in lines already stays as it is."""
    for turn in (content, lines):
        messages = [{"role": role, "content": turn} for role in ("system", "user", "assistant")]
        template = chat_template(_stage("block"))
        text = qwen.apply_chat_template(messages, chat_template=template, tokenize=False)
        expected = "".join(
            f"<|im_start|>{role}\n{turn if role != 'user' else lines}<|im_end|>\n"
            for role in ("system", "user", "assistant")
        )
        assert text == expected
