"""A tokenizer that is read without transformers is the one that transformers makes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import REPOSITORY
from helpers.qwen_tokenizer import build_qwen_tokenizer

from nvlm.data.text.chat import ChatTokenizer, load_chat_tokenizer, open_tokenizer
from nvlm.data.text.qwen2_tokenizer import read_qwen2_tokenizer
from nvlm.errors import DataError

TINY = REPOSITORY / "assets/tiny/qwen2"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "user\nÅngström A\u030a 12345 don't <|im_end|>  \r\n\t<tile_1></Image>日本 🦀 "
Change = Callable[[dict[str, Any], dict[str, Any]], object]


def check_same(folder: Path) -> None:
    ours = ChatTokenizer(read_qwen2_tokenizer(folder), "<|vision_pad|>")
    theirs = ChatTokenizer(open_tokenizer(str(folder)), "<|vision_pad|>")
    same = ("format", "control_ids", "end_id", "image_id", "pad_id", "vocab_size", "fingerprint")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    assert ours._plain.to_str() == theirs._plain.to_str()
    assert ours.encode(TEXT) == theirs.encode(TEXT)


def copied(folder: Path, change: Change) -> Path:
    """The tiny model's tokenizer in `folder`, after `change(tokenizer.json, its settings)`."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    values = [json.loads(file.read_text()) for file in files]
    change(*values)
    for file, value in zip(files, values, strict=True):
        file.write_text(json.dumps(value))
    return folder


def tokens_of_settings(tokenizer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder`, as published settings have it."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer["added_tokens"]
    }


def test_the_tiny_models_tokenizer():
    check_same(TINY)


def test_qwens_tokenizer_as_it_is_published(tmp_path: Path):
    """151,643 tokens; settings and what surrounds the model are those of Qwen2.5's folders."""
    build_qwen_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    of_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    tokenizer["pre_tokenizer"]["pretokenizers"][1] = {**of_bytes, "use_regex": False}
    tokenizer["decoder"] = {**of_bytes, "use_regex": False}
    tokenizer["post_processor"] = {**of_bytes, "use_regex": False}
    tokenizer["model"]["continuing_subword_prefix"] = ""
    tokenizer["model"]["end_of_word_suffix"] = ""
    path.write_text(json.dumps(tokenizer))
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": tokens_of_settings(tokenizer),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    check_same(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda _, settings: settings.update(pad_token=None),
        lambda _, settings: settings.pop("pad_token"),
        lambda _, settings: settings.update(eos_token="<|im_start|>"),
        lambda _, settings: settings.update(tokenizer_class="Qwen2Tokenizer"),
        lambda tokenizer, settings: settings.update(
            added_tokens_decoder=tokens_of_settings(tokenizer)
        ),
        lambda tokenizer, _: tokenizer["added_tokens"][3].update(special=False),
        lambda tokenizer, _: tokenizer["decoder"].update(use_regex=False),
        lambda tokenizer, _: tokenizer["model"].update(
            merges=[" ".join(pair) for pair in tokenizer["model"]["merges"]]
        ),
    ],
)
def test_what_is_read_here(tmp_path: Path, change: Change):
    def all_changes(tokenizer: dict[str, Any], settings: dict[str, Any]) -> None:
        settings["extra_special_tokens"] = ["<|im_start|>"]
        change(tokenizer, settings)

    check_same(copied(tmp_path, all_changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda _, settings: settings.update(pad_token="<pad>"),  # which would be added
        lambda _, settings: settings.update(image_token="<|vision_pad|>"),
        lambda _, settings: settings.update(add_prefix_space=True),
        lambda _, settings: settings.update(extra_special_tokens={"image_token": "<|im_end|>"}),
        lambda _, settings: settings.update(extra_special_tokens=["<image>"]),
        lambda _, settings: settings.update(tokenizer_class="LlamaTokenizerFast"),
        lambda _, settings: settings.update(auto_map={"AutoTokenizer": ["a.A", None]}),
        lambda _, settings: settings.update(
            added_tokens_decoder={"1020": {"content": "<|endoftext|>", "special": True}}
        ),
        lambda tokenizer, _: tokenizer["added_tokens"][3].update(lstrip=True),
        lambda tokenizer, _: tokenizer["added_tokens"][0].update(special=False),
        lambda tokenizer, _: tokenizer["added_tokens"][3].update(id=1030),
        lambda tokenizer, _: tokenizer["added_tokens"].reverse(),
        lambda tokenizer, _: tokenizer.update(normalizer={"type": "NFKC"}),
        lambda tokenizer, _: tokenizer.update(post_processor=None),
        lambda tokenizer, _: tokenizer["model"].update(ignore_merges=True),
        lambda tokenizer, _: tokenizer["model"].update(merges=[["no", "such"]]),
        lambda tokenizer, _: tokenizer.pop("model"),
    ],
)
def test_what_is_left_to_transformers(tmp_path: Path, change: Change):
    assert read_qwen2_tokenizer(copied(tmp_path, change)) is None


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_files_that_say_more_are_left_to_transformers(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    assert read_qwen2_tokenizer(copied(tmp_path, lambda *_: None)) is None


def test_another_models_folder_is_left_to_transformers(tmp_path: Path):
    folder = copied(tmp_path, lambda *_: None)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert read_qwen2_tokenizer(folder) is None


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    folder = copied(tmp_path, lambda *_: None)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(DataError, match=r"'tokenizer\.json' is not a regular file"):
        load_chat_tokenizer(str(folder), "<|vision_pad|>")
