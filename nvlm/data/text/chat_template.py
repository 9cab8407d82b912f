"""Which chat format a tokenizer's own `chat_template` writes.

The template is rendered as transformers renders it, in the same sandbox
(`tests/data/text/test_chat_template.py`), on a few conversations. The format of `FORMATS` that
writes them all the same is the tokenizer's. Where templates are allowed to differ:

- A conversation without a system text may begin with one that the template brings: an empty
  `stage.system_message` means none here.
- Of several turns, Mistral's templates write the system text into the last question, and Qwen3's
  the empty thoughts before the last answer. Here they stand in the first question and before every
  answer: one sequence trains all answers, each after what it answers to.
- A template may refuse system texts, or write the beginning of an answer after every conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from nvlm.data.samples.sample import Messages
from nvlm.data.text.chat_format import (
    CHATML,
    FORMATS,
    LLAMA3,
    ChatFormat,
    names_of,
    written,
    written_turns,
)
from nvlm.errors import DataError

# Of a tokenizer without a template, by the tokens that it has.
WITHOUT_TEMPLATE = (CHATML, LLAMA3)

_ROLES = ("system", "user", "assistant")
_STRIPS = [roles for number in range(4) for roles in combinations(_ROLES, number)]
# How templates are asked: Qwen3's for answers without thoughts, Llama 3.2's for one same day.
_ARGUMENTS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_NUM_SHOWN = 40


@dataclass(frozen=True)
class _Probe:
    """A conversation, whether its next answer is asked for, and what the template makes of it."""

    what: str
    messages: Messages
    asks: bool
    rendered: str | None = None  # None: refused


def _messages(*contents: str, system: str | None = None) -> Messages:
    turns = [
        {"role": _ROLES[1 + number % 2], "content": content}
        for number, content in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


PROBES = (
    _Probe("a question", _messages("Q1?"), True),
    _Probe("several turns", _messages("Q1?", "A1.", "Q2?"), True),
    _Probe("a system text", _messages("Q1?", system="S."), True),
    _Probe("several turns and a system text", _messages("Q1?", "A1.", "Q2?", system="S."), True),
    _Probe("an answer", _messages("Q1?", "A1.", system="S."), False),
    _Probe("several answers", _messages("Q1?", "A1.", "Q2?", "A2.", system="S."), False),
    _Probe("an empty system text", _messages("Q1?", system=""), True),
    _Probe("white space", _messages(" \nQ1?\n ", " \nA1.\n ", "Q2?", system=" \nS.\n "), True),
)


def find_format(
    template: Any, special_tokens: dict[str, str], vocabulary: dict[str, int], name: str
) -> ChatFormat:
    """The chat format that `template` writes.

    Args:
        template: of the tokenizer, or several by their names; None: it has none.
        special_tokens: what templates ask for by name, such as `bos_token`.
        name: of the tokenizer, as messages show it.

    Raises:
        DataError: it is none that is known, or one whose tokens the tokenizer lacks.
    """
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        for chat in WITHOUT_TEMPLATE:
            if all(token in vocabulary for token in chat.controls):
                return chat
        raise DataError(
            f"{name}: has no chat_template, and the control tokens of none that is known without "
            + "one: "
            + "; ".join(f"{chat.name}: {' '.join(chat.controls)}" for chat in WITHOUT_TEMPLATE)
        )
    probes = [
        replace(probe, rendered=_render(template, probe, special_tokens, name)) for probe in PROBES
    ]
    for chat in FORMATS:
        for candidate, placed_last in _variants(chat):
            if all(_writes(candidate, probe, placed_last) for probe in probes):
                return _checked(candidate, vocabulary, name)
    raise DataError(_difference(probes, name))


def render(template: str, **values: Any) -> str:
    """What `template` writes, as transformers renders it.

    Raises:
        jinja2.TemplateError and whatever else a template may raise.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for who trains by the template; their text counts."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        def _same(self, caller: Any) -> str:
            return caller()

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    # The date must not decide a sample's tokens.
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "26 Jul 2024"}
    return environment.from_string(template).render(**values)


def _to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


def _render(template: str, probe: _Probe, special_tokens: dict[str, str], name: str) -> str | None:
    """What the template writes; None where it refuses a system text."""
    values = special_tokens | _ARGUMENTS | {"tools": None, "documents": None}
    try:
        return render(template, messages=probe.messages, add_generation_prompt=probe.asks, **values)
    except Exception as error:  # a template may divide by zero
        if probe.messages[0]["role"] == "system":
            return None
        raise DataError(
            f"{name}: its chat_template cannot be rendered: {type(error).__name__}: {error}"
        ) from None


def _variants(chat: ChatFormat) -> Iterator[tuple[ChatFormat, bool]]:
    """The format with what templates of its kind differ in, and whether it places things last."""
    has_places = chat.system_in_question is not None or bool(chat.answer_lead)
    for strips, drops, placed_last in product(
        _STRIPS, (False, True), (False, True) if has_places else (False,)
    ):
        yield replace(chat, strips=strips, drops_empty_system=drops), placed_last


def _writes(chat: ChatFormat, probe: _Probe, placed_last: bool) -> bool:
    if probe.rendered is None:
        return chat.system_in_question is not None
    expected = _as_a_template(chat, probe, placed_last)
    if probe.rendered == expected:
        return True
    if placed_last and not probe.asks and chat.system_in_question is not None:
        # Mistral's write the system text only where a question stands last.
        without = replace(probe, messages=probe.messages[1:])
        if probe.rendered == _as_a_template(chat, without, placed_last):
            return True
    if not probe.asks and probe.rendered == expected + chat.around("assistant")[0]:
        return True
    return probe.messages[0]["role"] == "user" and _brings_a_system_text(chat, probe, placed_last)


def _brings_a_system_text(chat: ChatFormat, probe: _Probe, placed_last: bool) -> bool:
    mark = "\0"
    with_one = replace(probe, messages=[{"role": "system", "content": mark}, *probe.messages])
    before, _, after = _as_a_template(chat, with_one, placed_last).partition(mark)
    found = probe.rendered or ""
    return (
        len(found) > len(before) + len(after) and found.startswith(before) and found.endswith(after)
    )


def _as_a_template(chat: ChatFormat, probe: _Probe, placed_last: bool) -> str:
    """The conversation as the tokenizer's template has it: with one place for some things."""
    if not placed_last:
        return written(chat, probe.messages, probe.asks)
    messages = probe.messages
    if chat.system_in_question is not None and messages[0]["role"] == "system":
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        messages = [*messages[1:last], messages[0], *messages[last:]]
    turns = list(written_turns(chat, messages))
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    for i in answers if probe.asks else answers[:-1]:
        turns[i] = replace(turns[i], before=chat.assistant[0])
    text = chat.begin + "".join(turn.text for turn in turns)
    return text + (chat.around("assistant")[0] if probe.asks else "")


def _checked(chat: ChatFormat, vocabulary: dict[str, int], name: str) -> ChatFormat:
    for token in chat.controls:
        if token not in vocabulary:
            raise DataError(
                f"{name}: has no token {token}, which its chat_template writes (format {chat.name})"
            )
    return chat


def _difference(probes: list[_Probe], name: str) -> str:
    """Where the template differs from the format that is nearest to it."""
    nearest: tuple[int, int, str] = (-1, -1, "")
    for chat in FORMATS:
        for candidate, placed_last in _variants(chat):
            wrong = [probe for probe in probes if not _writes(candidate, probe, placed_last)]
            first = wrong[0]
            expected = _as_a_template(candidate, first, placed_last)
            found = first.rendered or ""
            pairs = zip(found, expected, strict=False)
            same = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
            same = min(len(found), len(expected)) if same is None else same
            if (len(probes) - len(wrong), same) > nearest[:2]:
                shown = _shown(found, same) if first.rendered is not None else "a refusal"
                text = f"for {first.what} it writes {shown}, {chat.name} {_shown(expected, same)}"
                nearest = (len(probes) - len(wrong), same, text)
    return (
        f"{name}: its chat_template is of none of the formats known here ({names_of(FORMATS)}): "
        f"{nearest[2]}; put a template of one of them into the folder's tokenizer files"
    )


def _shown(text: str, place: int) -> str:
    start = max(0, place - _NUM_SHOWN // 2)
    dots = "..." if start else ""
    return repr(f"{dots}{text[start : place + _NUM_SHOWN]}")
