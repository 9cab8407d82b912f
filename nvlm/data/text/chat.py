"""The tokenizer: control tokens are ids, everything else is plain text.

Which control tokens there are says the tokenizer's chat template (chat_template.py). Text is
tokenised by a copy of the tokenizer without added tokens, so no text can ever become a control
token, whatever it spells. This file imports no torch by itself; transformers may.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nvlm import platform
from nvlm.data.text.chat_format import (
    ChatFormat,
    WrittenTurn,
    split_controls,
    written,
    written_turns,
)
from nvlm.data.text.chat_template import find_format
from nvlm.data.text.qwen2_tokenizer import read_qwen2_tokenizer
from nvlm.errors import DataError
from nvlm.hashes import hash_json

# Counting is batched: the tokenizer's own threads work on this many texts at a time.
_NUM_TEXTS_PER_BATCH = 4096
_NUM_TOKENS_SHOWN = 12
# Parts of a tokenizer's definition.
_BEFORE_MODEL = ("normalizer", "pre_tokenizer")
# What the tokens of are compared with the tokenizer's own.
_PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]


class ChatTokenizer:
    """Ids of plain text and of the control tokens.

    Attributes:
        format: of conversations, as the tokenizer's own template writes them.
        control_ids: control token of the format -> its id.
        end_id: ends an answer.
        stop_ids: every id that ends an answer.
        image_id: the placeholder that stands once per image embedding.
        pad_id: fills what is left of a sequence; never attended to or trained.
        fingerprint: hash of everything that decides ids of text.
        begins_words: whether text begins otherwise after a control token than after text: as
            sentencepiece's models have it, with the space before a word.
    """

    def __init__(self, tokenizer, image_token: str, name: str = "tokenizer"):
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(f"{name}: needs a fast tokenizer (tokenizer.json)")
        definition = json.loads(backend.to_str())
        vocabulary = tokenizer.get_vocab()
        self.format = find_format(
            tokenizer.chat_template, tokenizer.special_tokens_map, vocabulary, name
        )
        self.control_ids = {token: vocabulary[token] for token in self.format.controls}
        self._splits: dict[str, list[str | int]] = {}
        ends = self.split(self.format.around("assistant")[1])
        self.end_id = next(part for part in ends if isinstance(part, int))
        stops = {vocabulary[token] for token in self.format.stops if token in vocabulary}
        self.stop_ids = frozenset({self.end_id, *stops})
        added = [token["content"] for token in definition["added_tokens"]]
        self.image_id = _image_id(vocabulary, added, image_token, self.format, name)
        self.pad_id = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)
        self.fingerprint = hash_json(definition | {"truncation": None, "padding": None})
        after_control, within = plain_definitions(definition)
        self._plain = Tokenizer.from_str(json.dumps(after_control))
        self.begins_words = within != after_control
        self._within = Tokenizer.from_str(json.dumps(within)) if self.begins_words else self._plain
        self._check_text(image_token, name)
        self._check_prompt(backend, name)

    def split(self, text: str) -> list[str | int]:
        """A text of the format as ids of control tokens and the texts between them."""
        if text not in self._splits:
            parts = split_controls(self.format, text)
            self._splits[text] = [self.control_ids.get(part, part) for part in parts]
        return [*self._splits[text]]

    def frame(self, turn: WrittenTurn) -> TurnFrame:
        opening, closing = self.split(turn.before), self.split(turn.after)
        lead = opening.pop() if opening and isinstance(opening[-1], str) else ""
        tail = closing.pop(0) if closing and isinstance(closing[0], str) else ""
        return TurnFrame(opening, f"{lead}{turn.joined}", f"{tail}", closing)

    def encode(self, text: str, goes_on: bool = False) -> list[int]:
        """Ids of plain text, in one piece. `goes_on`: other text stands before it."""
        plain = self._within if goes_on else self._plain
        return plain.encode(text, add_special_tokens=False).ids

    def count(self, texts: Sequence[str], goes_on: bool = False) -> list[int]:
        """Number of tokens of each text, as `encode` would give."""
        plain = self._within if goes_on else self._plain
        counts: list[int] = []
        for start in range(0, len(texts), _NUM_TEXTS_PER_BATCH):
            batch = list(texts[start : start + _NUM_TEXTS_PER_BATCH])
            encodings = plain.encode_batch_fast(batch, add_special_tokens=False)
            counts.extend(len(encoding.ids) for encoding in encodings)
        return counts

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """What each id of one plain text adds to it; "" where a character goes on in the next id.

        To look at; `encode` of the joined text need not give the same ids.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(self._plain, token) or "" for token in ids]
        # A stream waits forever after U+FFFD, which is also what half a character looks like.
        waiting = len(texts)
        while waiting and not texts[waiting - 1]:
            waiting -= 1
        if waiting < len(texts):
            texts[-1] = self._plain.decode(list(ids[waiting:]), skip_special_tokens=False)
        return texts

    def _check_text(self, image_token: str, name: str) -> None:
        """That no text becomes a control token; with some models a vocabulary is enough for it."""
        for token in (*self.format.controls, image_token):
            ids = {*self.encode(token), *self.encode(token, goes_on=True)}
            if found := ids & {*self.control_ids.values(), self.image_id}:
                raise DataError(f"{name}: the text {token} becomes the control token {min(found)}")

    def _check_prompt(self, backend: Any, name: str) -> None:
        """That a prompt has the tokens that the tokenizer itself makes of it."""
        parts = self.split(self.format.begin)
        for turn in written_turns(self.format, _PROMPT):
            frame = self.frame(turn)
            parts += [*frame.opening, f"{frame.lead}{turn.content}{frame.tail}", *frame.closing]
        parts += self.split(self.format.around("assistant")[0])
        each = ([part] if isinstance(part, int) else self.encode(part) for part in parts)
        ids = list(chain.from_iterable(each))
        text = written(self.format, _PROMPT, asks=True)
        own = backend.encode(text, add_special_tokens=False).ids
        if ids != own:
            raise DataError(f"{name}: makes {own} of {text!r}, and its pieces one by one {ids}")


@dataclass(frozen=True)
class TurnFrame:
    """What stands around a turn's content: ids of control tokens, and texts.

    Attributes:
        lead, tail: the texts that the content goes on from and goes on with.
    """

    opening: list[str | int]
    lead: str
    tail: str
    closing: list[str | int]


def load_chat_tokenizer(name: str, image_token: str) -> ChatTokenizer:
    """The Hugging Face tokenizer in folder `name`, or of that hub name.

    Raises:
        DataError: there is none, or it lacks a control token.
    """
    tokenizer = read_qwen2_tokenizer(Path(name)) or open_tokenizer(name)
    return ChatTokenizer(tokenizer, image_token, name=f"model.tokenizer {name}")


def open_tokenizer(name: str) -> Any:
    """transformers' tokenizer in folder `name`, or of that hub name; no code of it is run.

    Raises:
        DataError: there is none, it is damaged, or it consists of code.
    """
    platform.hide_unfitting_torchvision()
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir():
        # Reading a pipe would wait forever.
        for path in folder.iterdir():
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise DataError(f"model.tokenizer {name}: {path.name!a} is not a regular file")
    # Of an NVLM-D's own config.json it says that it knows no such model, and goes on.
    says = logging.getLogger("transformers.configuration_utils")
    level = says.level
    says.setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of a damaged tokenizer.json the library raises anything
        what = "a folder without a tokenizer" if folder.is_dir() else "no such folder, and the hub"
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"model.tokenizer {name}: {what}: {first_line}") from None
    finally:
        says.setLevel(level)


def _image_id(
    vocabulary: dict[str, int], added: list[str], token: str, chat: ChatFormat, name: str
) -> int:
    if token in added and token not in (*chat.controls, *chat.stops):
        return vocabulary[token]
    free = [other for other in added if other not in (*chat.controls, *chat.stops)]
    more = len(free) - _NUM_TOKENS_SHOWN
    shown = " ".join(free[:_NUM_TOKENS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if token not in vocabulary:
        problem = f"has no token {token}"
    elif token in added:
        problem = f"{token} is a control token of its chat format {chat.name}"
    else:
        problem = f"{token} is ordinary text"
    raise DataError(
        f"{name}: {problem}; model.image_token names one of its added tokens that stands nowhere "
        f"else: {shown or 'it has no other than its control tokens'}"
    )


def plain_definitions(definition: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer to which all is plain text: after a control token, and after other text.

    Sentencepiece's models put a space before text, most of them after each control token. No text
    begins a sequence.
    """
    plain = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    definition = _with_own_steps(definition | plain)
    for step in _steps(definition):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    within = _with_own_steps(definition)
    for step in _steps(within):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        elif step["type"] == "Prepend":
            step["prepend"] = ""
    return definition, within


def _with_own_steps(definition: dict[str, Any]) -> dict[str, Any]:
    """A copy whose `_steps` can be changed; a vocabulary takes seconds to copy, and is the same."""
    return definition | {name: copy.deepcopy(definition[name]) for name in _BEFORE_MODEL}


def _steps(definition: dict[str, Any]) -> list[dict[str, Any]]:
    """What is done to a text before the model."""
    steps = []
    for name in _BEFORE_MODEL:
        whole = definition[name] or {}
        steps += whole.get("normalizers") or whole.get("pretokenizers") or [whole]
    return [step for step in steps if step]
