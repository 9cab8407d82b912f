"""A tokenizer's chat format is the one that its own template writes; transformers is the judge."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from helpers.chat_tokenizers import TEMPLATES, build_tokenizer, image_token
from transformers import PreTrainedTokenizerFast

from nvlm.batch import IGNORED_LABEL
from nvlm.data.images.tiling import candidate_grids
from nvlm.data.samples.kinds import Sample
from nvlm.data.samples.sample import Messages
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.chat_format import FORMATS, written
from nvlm.data.text.chat_template import PROBES, render
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError
from nvlm.sizes.visual import TileTags, VisualLayout

# Template -> format, what is stripped, whether it refuses system texts.
FOUND = {
    "qwen2": ("chatml", ()),
    "qwen2.5": ("chatml", ()),
    "qwen3": ("qwen3", ()),
    "yi": ("chatml", ()),
    "yi_1.5": ("chatml_bare_system", ()),
    "llama3": ("llama3", ("system", "user", "assistant")),
    "llama3.1": ("llama3.1", ("system", "user", "assistant")),
    "llama3.2": ("llama3.1", ("system", "user", "assistant")),
    "mistral_v0.1": ("mistral_v0.1", ()),
    "mistral": ("mistral", ()),
    "mistral_v3": ("mistral_v3", ("assistant",)),
    "mistral_nemo": ("mistral_nemo", ()),
    "mistral_v7": ("mistral_v7", ()),
}
ASKED = {"enable_thinking": False, "date_string": "26 Jul 2024"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Why?"},
]
# What the published templates write of `TALK`, the next answer asked for.
_CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n"
    "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
WRITES = {
    "qwen2": _CHATML,
    "qwen2.5": _CHATML,
    "qwen3": f"{_CHATML}<think>\n\n</think>\n\n",
    "yi": _CHATML,
    "yi_1.5": _CHATML.replace("<|im_start|>system\nBe brief.<|im_end|>\n", "Be brief."),
    "llama3": _LLAMA,
    "llama3.1": _LLAMA.replace("Be brief.", f"{_DATES}Be brief."),
    "llama3.2": _LLAMA.replace("Be brief.", f"{_DATES}Be brief."),
    "mistral": (
        "<s> [INST] Be brief.\n\nWhat is it? [/INST] A cat.</s> [INST] Why? [/INST]"
    ),
    "mistral_v3": "<s>[INST] What is it?[/INST] A cat.</s>[INST] Be brief.\n\nWhy?[/INST]",
    "mistral_nemo": "<s>[INST]What is it?[/INST]A cat.</s>[INST]Be brief.\n\nWhy?[/INST]",
    "mistral_v7": (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]What is it?[/INST]A cat.</s>"
        "[INST]Why?[/INST]"
    ),
}  # fmt: skip

_made: dict[str, tuple[PreTrainedTokenizerFast, ChatTokenizer]] = {}


def made(name: str) -> tuple[PreTrainedTokenizerFast, ChatTokenizer]:
    if name not in _made:
        tokenizer = build_tokenizer(name)
        _made[name] = tokenizer, ChatTokenizer(tokenizer, image_token(name))
    return _made[name]


def make_encoder(chat: ChatTokenizer, **settings: Any) -> SampleEncoder:
    visual = VisualLayout("1d", True, 12, 112, num_tokens_per_tile=4)
    defaults = {"visual": visual, "image_boundary": "block", "system_message": None}
    return SampleEncoder(chat, **(defaults | settings))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_of_a_template(name: str):
    chat = made(name)[1].format
    assert (chat.name, chat.strips) == FOUND[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_renders_what_the_format_was_found_by(name: str):
    tokenizer, _ = made(name)
    special = tokenizer.special_tokens_map
    for probe in PROBES:
        if name == "mistral_v0.1" and probe.messages[0]["role"] == "system":
            continue
        arguments = {"messages": probe.messages, "add_generation_prompt": probe.asks, **ASKED}
        ours = render(TEMPLATES[name], **special, **arguments)
        theirs = tokenizer.apply_chat_template(
            probe.messages, tokenize=False, add_generation_prompt=probe.asks, **ASKED
        )
        today = datetime.now().strftime("%Y-%m-%d")
        assert ours == theirs.replace(today, "26 Jul 2024")


@pytest.mark.parametrize("name", WRITES)
def test_templates_write_what_published_ones_write(name: str):
    tokenizer, _ = made(name)
    kwargs = {"tokenize": False, "add_generation_prompt": True, **ASKED}
    assert tokenizer.apply_chat_template(TALK, **kwargs) == WRITES[name]


def conversations(name: str) -> list[Messages]:
    """Those whose prompts are the template's: one turn, or turns with nothing in one place only."""
    single = [TALK[:2], TALK[1:2], [{"role": "user", "content": " 448 tiles?\n"}]]
    if name == "mistral_v0.1":
        return [*single[1:], TALK[1:]]
    if name in ("qwen2", "qwen2.5", "mistral_v7"):
        return [single[0], TALK]  # they bring a system text
    if name in ("qwen3", "mistral_v3", "mistral_nemo"):
        return single
    return [*single, TALK]


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_have_the_tokens_that_transformers_gives_them(name: str):
    tokenizer, chat = made(name)
    for messages in conversations(name):
        theirs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **ASKED
        )
        tokens, _ = make_encoder(chat).encode_prompt(messages, [])
        assert tokens.tolist() == theirs


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
@pytest.mark.parametrize("system_message", [None, "Answer the questions."])
def test_each_answer_is_trained_after_its_prompt_and_as_long_as_measured(
    name: str, image_boundary: str, system_message: str | None
):
    _, chat = made(name)
    encoder = make_encoder(chat, image_boundary=image_boundary, system_message=system_message)
    answers = ["A cat.", "Tile 448"]
    messages = [
        {"role": "user", "content": " <image>\nWhat? <image> "},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "And <image>"},
        {"role": "assistant", "content": answers[1]},
    ]
    grids = [(1, 1), (3, 2), (2, 1)]
    encoded = encoder.encode(messages, grids)
    trained = encoded.labels != IGNORED_LABEL
    learnt = 0
    for turn, answer in enumerate(answers):
        prompt, image_mask = encoder.encode_prompt(messages[: 2 * turn + 1], grids[: 2 + turn])
        start = len(prompt)
        assert np.array_equal(encoded.tokens[:start], prompt)
        assert np.array_equal(encoded.image_mask[:start], image_mask)
        assert not trained[start - 2] and trained[start - 1]
        asked = chat.split(written(chat.format, messages[: 2 * turn + 1], asks=True))
        text = f"{chat.format.answer_start}{answer}"
        expected = chat.encode(text, goes_on=isinstance(asked[-1], str))
        for part in chat.split(chat.format.assistant[1]):
            expected += [part] if isinstance(part, int) else chat.encode(part)
        labels = encoded.labels[start - 1 :][: len(expected)]
        assert labels.tolist() == expected
        learnt += len(labels)
    assert trained.sum() == learnt
    (lengths,) = encoder.measure([Sample("", "", messages)])
    leads = lengths.leads_single[0] + sum(lengths.leads_multiple[1:])
    tags = sum(encoder.tag_lengths(12)[grid] for grid in grids)
    num_tiles = sum(encoder.visual.num_tiles(grid) for grid in grids)
    assert sum(lengths.turn_tokens) + leads + tags + 4 * num_tiles == len(encoded.tokens)
    assert sum(lengths.turn_trained) == learnt


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("marks", ["", "<image>\n", "See <image> here: "])
@pytest.mark.parametrize("image_boundary", ["block", "merged"])
def test_each_variant_of_a_sample_is_measured(name: str, marks: str, image_boundary: str):
    encoder = make_encoder(made(name)[1], image_boundary=image_boundary, system_message="Be brief.")
    variants = [(f"{marks}What?", "A cat."), (f"{marks} 448 ", "7 7"), (marks or "x", "12345")]
    (lengths,) = encoder.measure([Sample("vqa", "vqa", variants=variants)])
    measured = zip(variants, lengths.variant_tokens, lengths.variant_trained, strict=True)
    for (question, answer), tokens, num_trained in measured:
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        grids = [(1, 1)] * question.count("<image>")
        encoded = encoder.encode(messages, grids)
        length = tokens + sum(lengths.leads_single) + 4 * len(grids)
        assert (length, num_trained) == (
            len(encoded.tokens),
            (encoded.labels != IGNORED_LABEL).sum(),
        )


@pytest.mark.parametrize("name", TEMPLATES)
def test_documents_begin_and_end_as_the_tokenizers_texts_do(name: str):
    _, chat = made(name)
    messages = [
        {"role": "document", "content": "One.\n\n"},
        {"role": "document", "content": "<image>Two."},
    ]
    encoder = make_encoder(chat)
    encoded = encoder.encode(messages, [(1, 1)])
    begin, (end,) = chat.split(chat.format.begin), chat.split(chat.format.end)
    tokens = encoded.tokens.tolist()
    assert tokens[: len(begin)] == begin and tokens[-1] == end
    learnt = (encoded.labels != IGNORED_LABEL).sum()
    # Without a token that begins it nothing asks for the first one.
    texts = len(chat.encode("One.\n\n")) + len(chat.encode("Two.", goes_on=True)) + 1
    assert learnt == texts - (not begin)
    (lengths,) = encoder.measure([Sample("", "", messages)])
    assert sum(lengths.turn_trained) == learnt
    assert sum(lengths.turn_tokens) + lengths.leads_single[0] + 4 == len(tokens)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_becomes_a_control_token(name: str):
    tokenizer, chat = made(name)
    encoder = make_encoder(chat)
    special = [chat.image_id, *chat.control_ids.values(), *tokenizer.all_special_ids]

    def count(content: str) -> list[int]:
        messages = [
            {"role": "system", "content": content},
            {"role": "user", "content": f"<image>{content}"},
            {"role": "assistant", "content": content},
        ]
        tokens = encoder.encode(messages, [(1, 1)]).tokens.tolist()
        return [tokens.count(token) for token in special]

    for text in (*chat.format.controls, image_token(name), *tokenizer.all_special_tokens):
        assert count(f"a{text}b {text}") == count("x")


def test_one_format_is_no_other():
    """Else the first of two would be taken for both."""
    texts = [[written(chat, probe.messages, probe.asks) for probe in PROBES] for chat in FORMATS]
    assert all(one != other for i, one in enumerate(texts) for other in texts[:i])
    assert len({chat.name for chat in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            TEMPLATES["llama3"].replace("<|eot_id|>", "<|eot_id|>\n"),
            "for a question it writes '..._id|>.n.nQ1?<|eot_id|>.n<|start_header_id|>",
        ),
        ("{{ messages[7].content }}{{ 1 // 0 }}", "cannot be rendered: UndefinedError"),
        ("{{ raise_exception('no') }}", "cannot be rendered: TemplateError: no"),
        ("{% if %}", "cannot be rendered: TemplateSyntaxError"),
        (TEMPLATES["yi"], "has no token <.im_start.>, which its chat_template writes"),
    ],
)
def test_other_templates_are_refused(template: str, message: str):
    tokenizer = build_tokenizer("llama3", chat_template=template)
    with pytest.raises(DataError, match=message.replace("|", r"\|").replace("?", r"\?")) as raised:
        ChatTokenizer(tokenizer, image_token("llama3"), "model.tokenizer X")
    assert str(raised.value).startswith("model.tokenizer X: ")
    assert "\n" not in str(raised.value)


def test_without_a_template_control_tokens_decide():
    for name, expected in (("yi", "chatml"), ("llama3", "llama3")):
        tokenizer = build_tokenizer(name, chat_template=None)
        assert ChatTokenizer(tokenizer, image_token(name)).format.name == expected
    with pytest.raises(DataError, match=r"has no chat_template, and .*llama3: <\|begin_of_text"):
        ChatTokenizer(build_tokenizer("mistral", chat_template=None), "<unk>")


def test_a_template_among_several():
    named = {"default": TEMPLATES["llama3"], "tool_use": "{{ 1 }}"}
    tokenizer = build_tokenizer("llama3", chat_template=named)
    assert ChatTokenizer(tokenizer, image_token("llama3")).format.name == "llama3"


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (
            "llama3",
            "<|vision_pad|>",
            r"has no token .*: <\|reserved_special_token_0\|> <",
        ),
        ("llama3", "<|eot_id|>", "is a control token of its chat format llama3"),
        ("llama3", "<|eom_id|>", "is a control token of its chat format llama3"),
        ("mistral_v3", "<|vision_pad|>", r"has no token <\|vision_pad\|>; .*: <unk> .control_8"),
        ("llama3", "a", "a is ordinary text; model.image_token names one of its added tokens"),
    ],
)
def test_what_cannot_stand_for_images(name: str, token: str, message: str):
    with pytest.raises(DataError, match=message):
        ChatTokenizer(build_tokenizer(name), token, "model.tokenizer X")


def test_answers_end_where_the_family_ends_them():
    ends = {name: {made(name)[0].convert_ids_to_tokens(i) for i in made(name)[1].stop_ids}
            for name in ("qwen2", "llama3", "mistral")}  # fmt: skip
    assert ends == {
        "qwen2": {"<|im_end|>"},
        "llama3": {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"},
        "mistral": {"</s>"},
    }


def test_an_index_of_another_format_is_another_index():
    _, chat = made("llama3")
    trimmed = make_encoder(chat).template_settings()
    template = TEMPLATES["llama3"].replace(" | trim", "")
    untrimmed = ChatTokenizer(
        build_tokenizer("llama3", chat_template=template), image_token("llama3")
    )
    assert untrimmed.format == replace(chat.format, strips=())
    assert make_encoder(untrimmed).template_settings() != trimmed
    # What was indexed before there were other formats stays.
    assert "chat format" not in make_encoder(made("qwen2")[1]).template_settings()


@pytest.mark.parametrize("name", ["llama3.1", "mistral", "qwen2"])
@pytest.mark.parametrize("tile_tags", ["none", "1d", "2d_grid", "2d_box"])
def test_an_image_that_does_not_fit_into_a_sequence_is_refused(name: str, tile_tags: TileTags):
    """Tokens of tags and turns are the tokenizer's: Llama 3 makes one of `12`, Qwen2 two."""
    visual = VisualLayout(tile_tags, True, 12, 448, num_tokens_per_tile=4)
    encoder = make_encoder(made(name)[1], visual=visual)
    messages = [
        {"role": "user", "content": "<image>\nWhat"},
        {"role": "assistant", "content": "This"},
    ]
    longest = max(len(encoder.encode(messages, [g]).tokens) for g in candidate_grids(12))
    encoder.check_room(longest)
    message = f"too short for one image of 13 tiles .* at least {longest} tokens"
    with pytest.raises(DataError, match=message):
        encoder.check_room(longest - 1)
