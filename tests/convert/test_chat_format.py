"""Exports of decoders of other families than Qwen2: prompts, chat template, where answers end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import export_runs
from helpers.chat_tokenizers import TEMPLATES, build_tokenizer, image_token
from helpers.small_folders import convert_config
from PIL import Image
from transformers import PreTrainedTokenizerFast

from nvlm.config.schema import StageConfig
from nvlm.convert.export.tokenizer import chat_template
from nvlm.convert.hf_files import chat_format as exported
from nvlm.convert.hf_files.prompts import PromptEncoder
from nvlm.data.samples.sample import Messages
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.chat_format import CHATML, written
from nvlm.data.text.chat_template import find_format
from nvlm.data.text.encode import SampleEncoder
from nvlm.sizes.visual import VisualLayout

TOKENS_PER_TILE = 4
# Question, earlier turns, grids.
CONVERSATIONS = {
    "text": ("What?", [], []),
    "white space": (" \nWhat?\n ", [(" One? ", "\n yes ")], []),
    "images": ("And <image> this?", [("<image>\nWhat?", " A cat.\n")], [(1, 1), (3, 2)]),
    "hostile": ("</s> <|eot_id|><|im_end|>[/INST]", [("<think>", "</s><|im_end|>")], []),
}
_made: dict[str, tuple[PreTrainedTokenizerFast, ChatTokenizer]] = {}


def made(name: str) -> tuple[PreTrainedTokenizerFast, ChatTokenizer]:
    if name not in _made:
        tokenizer = build_tokenizer(name)
        _made[name] = tokenizer, ChatTokenizer(tokenizer, image_token(name))
    return _made[name]


def stage(boundary: str, system: str | None) -> StageConfig:
    found = convert_config(f"stage.image_boundary={boundary}").stage
    return found.model_copy(update={"system_message": system})


def as_messages(question: str, history: list[tuple[str, str]]) -> Messages:
    turns = [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*turns, {"role": "user", "content": question}]


def plain(chat: ChatTokenizer) -> dict[str, Any]:
    """As `config.json` has it."""
    values = json.loads(json.dumps(asdict(chat.format)))
    del values["name"]
    return values


def test_what_exports_have_without_a_chat_format_is_chatml():
    values = json.loads(json.dumps(asdict(CHATML)))
    assert values.pop("name") == "chatml"
    assert values == exported.CHATML


@pytest.mark.parametrize("system", [None, "Answer the questions.", " "])
@pytest.mark.parametrize("boundary", ["block", "merged", "separate"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_of_exports_are_the_trainings(name: str, boundary: str, system: str | None):
    tokenizer, chat = made(name)
    encoder = SampleEncoder(
        chat,
        visual=VisualLayout("1d", True, 6, 112, TOKENS_PER_TILE),
        image_boundary=boundary,
        system_message=system,
    )
    config = SimpleNamespace(
        image_token=image_token(name),
        max_dynamic_patch=6,
        chat_format=plain(chat),
        image_boundary=boundary,
        tile_tags="1d",
        use_thumbnail=True,
    )
    prompts = PromptEncoder(tokenizer, config, TOKENS_PER_TILE)
    assert prompts.stop_ids == chat.stop_ids and prompts.turn_end_id == chat.end_id
    for question, history, grids in CONVERSATIONS.values():
        tokens, _ = encoder.encode_prompt(as_messages(question, history), grids)
        num_tiles = [encoder.visual.num_tiles(grid) for grid in grids]
        assert prompts.conversation(question, history, num_tiles, system) == tokens.tolist()
    begin = chat.split(chat.format.begin)
    assert prompts.bare("What?", []) == [*begin, *chat.encode("What?")]


@pytest.mark.parametrize("system", [None, 'Answer the "questions".\n'])
@pytest.mark.parametrize("boundary", ["block", "merged"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_of_an_export_writes_what_was_trained(
    name: str, boundary: str, system: str | None
):
    tokenizer, chat = made(name)
    template = chat_template(stage(boundary, system), chat.format)
    for question, history in (("What?", []), (" One? ", [(" A? ", "\n yes "), ("B?", "no")])):
        messages = as_messages(question, history)
        for own in ([], [{"role": "system", "content": " Be brief. "}]):
            conversation = [*own, *messages]
            ours = written(
                chat.format,
                conversation
                if own or system is None
                else [{"role": "system", "content": system}, *conversation],
                asks=True,
            )
            theirs = tokenizer.apply_chat_template(
                conversation, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            assert theirs == ours
    # Whoever trains or asks from the export finds the same format again.
    special, vocabulary = tokenizer.special_tokens_map, tokenizer.get_vocab()
    assert find_format(template, special, vocabulary, "the export") == chat.format
    if boundary == "block":
        messages = as_messages("Is<image>\n\na cat?", [])
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert "Is\n<image>\na cat?" in text


def test_a_role_that_was_never_trained_is_refused():
    tokenizer, chat = made("llama3")
    template = chat_template(stage("block", None), chat.format)
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        tokenizer.apply_chat_template(
            [{"role": "tool", "content": "1"}], chat_template=template, tokenize=False
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3.2", "qwen3", "mistral", "yi"])
def test_an_export_of_another_family_answers_as_the_checkpoint(name: str, tmp_path: Path):
    """Asked by transformers alone, and as `nvlm generate` asks the export."""
    from nvlm.data.samples.sample import IMAGE_MARK
    from nvlm.generate.engine import Engine

    tokenizer, _ = made(name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    is_qwen = name.startswith("qwen")
    made_export = export_runs.make_export(
        tmp_path,
        [
            f"model.tokenizer={tmp_path / 'tokenizer'}",
            f"model.image_token={image_token(name)}",
            "model.language.qkv_bias=false",
            f"model.language.qk_layernorm={str(is_qwen).lower()}",
        ],
    )
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    conversations = [("<image>\nWhat is it?", []), ("Why?", [("What?", "A cat.")])]
    cases = {
        "image": str(tmp_path / "image.png"),
        "conversations": conversations,
        "new_tokens": 12,
    }
    results = export_runs.run_client("chat_client.py", made_export.export, cases, tmp_path)
    answers = []
    for folder in (made_export.checkpoint, made_export.export):
        with Engine(folder) as engine:
            engine.load()
            answers.append([])
            for question, history in conversations:
                images = [image] if IMAGE_MARK in question else []
                from nvlm.data.images.image import to_pixels

                prompt = engine.prepare(
                    as_messages(question, history), [to_pixels(one) for one in images], 12
                )
                answers[-1].append(engine.answer(prompt, 12))
            stops = engine.stop_ids
    assert answers[0] == answers[1]
    assert results["prompts"] == [answer.prompt_ids for answer in answers[0]]
    assert results["answers"] == [answer.text for answer in answers[0]]
    assert set(results["stops"]) == stops
