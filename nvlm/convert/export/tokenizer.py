"""The tokenizer files of an export, readable by transformers from 4.49 to 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvlm.config.schema import RunConfig, StageConfig
from nvlm.data.text.chat import ChatTokenizer, open_tokenizer
from nvlm.data.text.chat_format import CHATML
from nvlm.errors import ConvertError

TURN_END = "<|im_end|>"

# What transformers 5 notes about where it loaded from, and code of the tokenizer's folder, which a
# reader of the export would run.
_LEFT_OUT = ("is_local", "local_files_only", "auto_map")

_TEMPLATE_SYSTEM_TURN = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\n' + SYSTEM_MESSAGE + '<|im_end|>\\n' }}
{%- endif -%}
"""
_TEMPLATE_TURNS = """\
{%- for message in messages -%}
{%- if message['content'] is not string -%}
{{ raise_exception('content must be text; an image is the mark <image> in it') }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
CONTENT
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
# The lines of nvlm/data/text/image_lines.py.
_TEMPLATE_IMAGE_LINES = """\
{%- if message['role'] == 'user' -%}
{%- for text in message['content'].split('<image>') -%}
{%- set text = text if loop.first else text.lstrip('\\r\\n') -%}
{{ text }}
{%- if not loop.last -%}
{{ ('' if not text or text.endswith('\\n') else '\\n') + '<image>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- else -%}
{{ message['content'] }}
{%- endif -%}"""


def load_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of `config`.

    Raises:
        DataError: it cannot be loaded.
        ConvertError: it lacks a control token.
    """
    name = config.model.tokenizer
    tokenizer = open_tokenizer(name)
    chat = ChatTokenizer(tokenizer, config.model.image_token, f"model.tokenizer {name}").format
    if chat != CHATML:
        raise ConvertError(
            f"model.tokenizer {name}: its chat template is of the format {chat.name}; exports can "
            f"write {CHATML.name} alone"
        )
    return tokenizer


def chat_template(stage: StageConfig) -> str:
    """A Jinja template of the prompt that the model was trained with.

    Qwen's own template would insert Qwen's system message into conversations that bring none. This
    one inserts the training's, so that a server that applies it feeds what `chat` feeds. An image
    stays the mark `<image>`: who applies the template expands it. Of a model trained with
    `image_boundary: block` each mark gets a line of its own.
    """
    is_block = stage.image_boundary == "block"
    content = _TEMPLATE_IMAGE_LINES if is_block else "{{- message['content'] -}}"
    turns = _TEMPLATE_TURNS.replace("CONTENT", content)
    if stage.system_message is None:
        return turns
    literal = json.dumps(stage.system_message, ensure_ascii=False)
    return _TEMPLATE_SYSTEM_TURN.replace("SYSTEM_MESSAGE", literal) + turns


def save_tokenizer(tokenizer: Any, stage: StageConfig, folder: Path) -> None:
    """Write `tokenizer` into `folder`, with the training's chat template.

    transformers 5 writes `tokenizer.json` and a short `tokenizer_config.json`. Added here is what
    transformers 4 wants besides, in particular with `use_fast=False`, which evaluation suites pass:
    `vocab.json` and `merges.txt`, the added tokens, and the older name of the special ones.
    """
    previous = tokenizer.chat_template, tokenizer.eos_token
    tokenizer.chat_template = chat_template(stage)
    tokenizer.eos_token = TURN_END
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template, tokenizer.eos_token = previous
    if "merges_file" in type(tokenizer).vocab_files_names:
        tokenizer.backend_tokenizer.model.save(str(folder))

    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for key in _LEFT_OUT:
        settings.pop(key, None)
    if "extra_special_tokens" in settings:
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["added_tokens_decoder"] = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
