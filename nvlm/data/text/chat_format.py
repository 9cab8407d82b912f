"""Formats of conversations: what stands around each role's text, and its control tokens.

A decoder answers best in the format that it was trained to chat in, which its tokenizer's
`chat_template` shows. `FORMATS` has those that are known, one entry each; `chat_template.py` finds
the one that a tokenizer's template writes. The training writes it so that the text up to an answer
is the same however many turns follow (`written_turns`): one sequence trains all of its answers.

An entry is plain text and names, so that an export carries it (`chat_format` in `config.json`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nvlm.data.samples.sample import Messages
from nvlm.errors import DataError


@dataclass(frozen=True)
class ChatFormat:
    """One format. Pairs are the texts before and after a content.

    Attributes:
        controls: what of these texts is one control token each.
        begin: every sequence begins with it.
        end: ends a document, which has no roles.
        stops: tokens that end an answer, besides what stands after one.
        answer_lead: before every answer; part of what is answered to, not trained.
        answer_start: before every answer; its first token belongs to the answer and is trained.
        system_in_question: joins a system text to the question after it, where the format has no
            system turns.
        always_has_system: a conversation without a system text has an empty system turn.
        strips: roles whose contents lose the white space around them.
        drops_empty_system: an empty system text is none.
    """

    name: str
    controls: tuple[str, ...]
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    end: str
    begin: str = ""
    stops: tuple[str, ...] = ()
    answer_lead: str = ""
    answer_start: str = ""
    system_in_question: str | None = None
    always_has_system: bool = False
    strips: tuple[str, ...] = ()
    drops_empty_system: bool = False

    def around(self, role: str) -> tuple[str, str]:
        """The texts before and after a content of `role`."""
        if role == "assistant":
            return self.assistant[0] + self.answer_lead, self.assistant[1]
        return self.user if role == "user" else self.system


CHATML = ChatFormat(
    name="chatml",
    controls=("<|im_start|>", "<|im_end|>"),
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    end="<|im_end|>",
)
LLAMA3 = ChatFormat(
    name="llama3",
    controls=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
              "<|eot_id|>"),
    begin="<|begin_of_text|>",
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    end="<|end_of_text|>",
    stops=("<|end_of_text|>", "<|eom_id|>"),
)  # fmt: skip
MISTRAL = ChatFormat(
    name="mistral",
    controls=("<s>", "</s>"),
    begin="<s>",
    system=("", ""),
    user=(" [INST] ", " [/INST]"),
    assistant=("", "</s>"),
    end="</s>",
    answer_start=" ",
    system_in_question="\n\n",
)
_INST = ("<s>", "</s>", "[INST]", "[/INST]")

FORMATS = (
    CHATML,
    # Qwen3 in its mode without thinking. Its template has the empty thoughts before the last answer
    # only; here they stand before every one, since each is trained.
    replace(
        CHATML,
        name="qwen3",
        controls=(*CHATML.controls, "<think>", "</think>"),
        answer_lead="<think>\n\n</think>\n\n",
    ),
    # Yi-1.5: the system text stands by itself.
    replace(CHATML, name="chatml_bare_system", system=("", "")),
    LLAMA3,
    # Llama 3.1 to 3.3. The date of today is the one that the template has where it is told none, so
    # that a sample has the same tokens every day.
    replace(
        LLAMA3,
        name="llama3.1",
        system=(
            f"{LLAMA3.system[0]}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
            LLAMA3.system[1],
        ),
        always_has_system=True,
    ),
    MISTRAL,
    # Mistral 7B v0.1 and v0.2 as first published.
    replace(MISTRAL, name="mistral_v0.1", user=("[INST] ", " [/INST]"), answer_start=""),
    # From 7B v0.3 on `[INST]` is a token.
    replace(MISTRAL, name="mistral_v3", controls=_INST, user=("[INST] ", "[/INST]")),
    # Mistral Nemo: no spaces.
    replace(
        MISTRAL,
        name="mistral_nemo",
        controls=_INST,
        user=("[INST]", "[/INST]"),
        answer_start="",
    ),
    # Mistral Small from 2501 on: system turns.
    replace(
        MISTRAL,
        name="mistral_v7",
        controls=(*_INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        system=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        user=("[INST]", "[/INST]"),
        answer_start="",
        system_in_question=None,
    ),
)


@dataclass(frozen=True)
class WrittenTurn:
    """A turn of a conversation: `before` and `after` are the format's, the others are plain text.

    Attributes:
        joined: what of a system text stands before the content.
    """

    role: str
    before: str
    joined: str
    content: str
    after: str

    @property
    def text(self) -> str:
        return f"{self.before}{self.joined}{self.content}{self.after}"


def written_turns(chat: ChatFormat, messages: Messages) -> Iterator[WrittenTurn]:
    """The turns of a conversation as they are written, without `begin`.

    Raises:
        DataError: a system text that no question follows, in a format that writes it into one.
    """
    if chat.always_has_system and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": ""}, *messages]
    joined = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role in chat.strips:
            content = content.strip()
        if role == "system":
            if chat.drops_empty_system and not content:
                continue
            if chat.system_in_question is not None:
                joined += content + chat.system_in_question
                continue
        before, after = chat.around(role)
        if role == "assistant":
            content = chat.answer_start + content
        elif role == "user":
            yield WrittenTurn(role, before, joined, content, after)
            joined = ""
            continue
        yield WrittenTurn(role, before, "", content, after)
    if joined:
        raise DataError(
            f"a system text without a question after it: chat format {chat.name} writes it there"
        )


def written(chat: ChatFormat, messages: Messages, asks: bool) -> str:
    """The conversation as one text, up to where an answer begins if one is asked for."""
    text = chat.begin + "".join(turn.text for turn in written_turns(chat, messages))
    return text + (chat.around("assistant")[0] if asks else "")


def split_controls(chat: ChatFormat, text: str) -> list[str]:
    """A text of the format in its control tokens and what stands between them, none empty."""
    parts = re.split(f"({'|'.join(map(re.escape, chat.controls))})", text)
    return [part for part in parts if part]


def with_system_message(messages: Messages, system_message: str | None) -> Messages:
    """The conversation with the stage's system turn first, if it brings none of its own."""
    if system_message is None or (messages and messages[0]["role"] in ("system", "document")):
        return messages
    return [{"role": "system", "content": system_message}, *messages]


def names_of(formats: Sequence[ChatFormat]) -> str:
    return ", ".join(chat.name for chat in formats)
