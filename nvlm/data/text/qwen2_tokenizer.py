"""Qwen2's tokenizer read from its folder without transformers, which takes a second to begin.

transformers makes a tokenizer of this family anew: the model's vocabulary and merges come from
`tokenizer.json`, what surrounds them from its class `Qwen2Tokenizer`. Of a folder that holds
nothing but that, the same is made here, so that ids and fingerprints are the same
(`tests/data/text/test_qwen2_tokenizer.py`). Whatever else a folder says is left to transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What the class puts around the model, whatever the file has there.
_NORMALIZER = {"type": "NFC"}
_SPLITTER = {
    "type": "Split",
    "pattern": {"Regex": _SPLIT},
    "behavior": "Isolated",
    "invert": False,
}
_OF_BYTES = {"type": "ByteLevel", "trim_offsets": True}
_SURROUNDINGS = {
    "normalizer": _NORMALIZER,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [_SPLITTER, {**_OF_BYTES, "add_prefix_space": False, "use_regex": False}],
    },
    "decoder": {**_OF_BYTES, "add_prefix_space": True, "use_regex": True},
}
_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast")
# Tokens that a folder may name, and the class's own where it does not.
_NAMED = {
    "unk_token": "<|endoftext|>",
    "bos_token": None,
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# Settings that decide no ids, or none where they have one of these values.
_HARMLESS: dict[str, tuple | None] = {
    "add_bos_token": (False,),
    "add_prefix_space": (False, None),
    "chat_template": None,
    "clean_up_tokenization_spaces": None,
    "errors": ("replace",),
    "model_max_length": None,
    "split_special_tokens": (False,),
}
# Read by transformers as well, where they exist.
_OTHER_FILES = ("added_tokens.json", "special_tokens_map.json")


class Qwen2Tokenizer:
    """What `ChatTokenizer` asks of a tokenizer of transformers."""

    def __init__(self, backend: Tokenizer, named: dict[str, str | None], chat_template: Any):
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self.special_tokens_map = {key: token for key, token in named.items() if token is not None}
        pad_token = named["pad_token"]
        self.pad_token_id = None if pad_token is None else backend.token_to_id(pad_token)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()


def read_qwen2_tokenizer(folder: Path) -> Qwen2Tokenizer | None:
    """The tokenizer in `folder`; None where transformers has to be asked, or has to complain."""
    try:
        if any((folder / name).exists() for name in _OTHER_FILES):
            return None
        settings = _read(folder / "tokenizer_config.json")
        definition = _read(folder / "tokenizer.json")
        if _read(folder / "config.json")["model_type"] != "qwen2":
            return None
        template = _chat_template(folder, settings.get("chat_template"))
        named = {key: settings.pop(key, default) for key, default in _NAMED.items()}
        if not _is_plain(definition) or not _fits(settings, named, definition["added_tokens"]):
            return None
        backend = _make(definition)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return backend and Qwen2Tokenizer(backend, named, template)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():  # opening a pipe would wait
        raise FileNotFoundError(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _chat_template(folder: Path, setting: Any) -> Any:
    """That of a file of its own counts more; older folders name several in a list."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(setting, list):
        return {one["name"]: one["template"] for one in setting}
    return setting


def _is_plain(definition: dict[str, Any]) -> bool:
    """Whether `tokenizer.json` is a BPE over bytes as the class makes it, and nothing more."""
    model = {name: definition["model"].get(name) for name in _MODEL}
    model |= {name: model[name] or "" for name in _MODEL if _MODEL[name] == ""}
    model |= {name: model[name] or False for name in _MODEL if _MODEL[name] is False}
    splits, of_bytes = definition["pre_tokenizer"]["pretokenizers"]
    return (
        model == _MODEL
        and definition["normalizer"] == _NORMALIZER
        and splits == _SPLITTER
        and (of_bytes["type"], of_bytes["add_prefix_space"]) == ("ByteLevel", False)
        and definition["decoder"]["type"] == "ByteLevel"
        and definition["post_processor"] is not None
        and definition.get("truncation") is None
        and definition.get("padding") is None
    )


def _fits(
    settings: dict[str, Any], named: dict[str, str | None], added_tokens: list[dict[str, Any]]
) -> bool:
    """Whether `tokenizer_config.json` adds nothing to the tokens of `tokenizer.json`."""
    if settings.pop("tokenizer_class") not in _CLASSES:
        return False
    decoder = settings.pop("added_tokens_decoder", None)
    if decoder is not None:
        tokens = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added_tokens
        }
        if decoder != tokens:
            return False
    wanted = {token for token in named.values() if token is not None}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        further = settings.pop(key, None) or []
        if not isinstance(further, list):
            return False
        wanted.update(further)
    special = {token["content"] for token in added_tokens if token["special"]}
    return wanted <= special and all(
        key in _HARMLESS and ((allowed := _HARMLESS[key]) is None or value in allowed)
        for key, value in settings.items()
    )


def _make(definition: dict[str, Any]) -> Tokenizer | None:
    from tokenizers import Tokenizer

    added_tokens = definition["added_tokens"]
    model = {**_MODEL, **{name: definition["model"][name] for name in ("vocab", "merges")}}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        **_SURROUNDINGS,
        "post_processor": definition["post_processor"],
        "model": model,
    }
    try:
        backend = Tokenizer.from_str(json.dumps(whole))
    except Exception:  # nothing more precise is raised; transformers will say what is wrong
        return None
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    ids = [token["id"] for token in added_tokens]
    is_as_written = all(
        backend.token_to_id(token["content"]) == token["id"] and plain.items() <= token.items()
        for token in added_tokens
    )
    return backend if is_as_written and ids == sorted(set(ids)) else None
