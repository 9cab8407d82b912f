"""ChatML and the tokenizer: control tokens are ids, everything else is plain text.

A turn is `<|im_start|>{role}\\n{content}<|im_end|>\\n`. Text is tokenised by a copy of the
tokenizer without added tokens, so no text can ever become a control token, whatever it spells.
This file imports no torch by itself; transformers may.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm import platform
from nvlm.data.samples.sample import Messages
from nvlm.data.text.qwen2_tokenizer import read_qwen2_tokenizer
from nvlm.errors import DataError
from nvlm.hashes import hash_json

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
# Counting is batched: the tokenizer's own threads work on this many texts at a time.
_NUM_TEXTS_PER_BATCH = 4096


class ChatTokenizer:
    """Ids of plain text and of the control tokens.

    Attributes:
        start_id, end_id: `<|im_start|>` and `<|im_end|>`.
        image_id: the placeholder that stands once per image embedding.
        pad_id: fills what is left of a sequence; never attended to or trained.
        fingerprint: hash of everything that decides ids.
    """

    def __init__(self, tokenizer, image_token: str, name: str = "tokenizer"):
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(f"{name}: needs a fast tokenizer (tokenizer.json)")
        definition = json.loads(backend.to_str())
        self.start_id = _control_id(tokenizer, TURN_START, name)
        self.end_id = _control_id(tokenizer, TURN_END, name)
        self.image_id = _control_id(tokenizer, image_token, name)
        self.pad_id = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)
        self.fingerprint = hash_json(definition | {"truncation": None, "padding": None})
        plain = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._plain = Tokenizer.from_str(json.dumps(definition | plain))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, in one piece."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, as `encode` would give."""
        counts: list[int] = []
        for start in range(0, len(texts), _NUM_TEXTS_PER_BATCH):
            batch = list(texts[start : start + _NUM_TEXTS_PER_BATCH])
            encodings = self._plain.encode_batch_fast(batch, add_special_tokens=False)
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


def with_system_message(messages: Messages, system_message: str | None) -> Messages:
    """The conversation with the stage's system turn first, if it brings none of its own."""
    if system_message is None or (messages and messages[0]["role"] in ("system", "document")):
        return messages
    return [{"role": "system", "content": system_message}, *messages]


def _control_id(tokenizer, token: str, name: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise DataError(f"{name}: has no token {token}")
    return vocabulary[token]
