"""The tokenizer files of an export, readable by transformers from 4.49 to 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvlm.config.schema import RunConfig, StageConfig
from nvlm.data.text.chat import ChatTokenizer, open_tokenizer
from nvlm.data.text.chat_format import CHATML, ChatFormat

# What transformers 5 notes about where it loaded from, and code of the tokenizer's folder, which a
# reader of the export would run.
_LEFT_OUT = ("is_local", "local_files_only", "auto_map")

# The lines of nvlm/data/text/image_lines.py.
_TEMPLATE_IMAGE_LINES = """\
{%- for text in content.split('<image>') -%}
{%- set text = text if loop.first else text.lstrip('\\r\\n') -%}
{{- text -}}
{%- if not loop.last -%}
{{- ('' if not text or text.endswith('\\n') else '\\n') + '<image>\\n' -}}
{%- endif -%}
{%- endfor -%}
"""


def load_tokenizer(config: RunConfig) -> tuple[Any, ChatTokenizer]:
    """The tokenizer of `config`, and how it writes conversations.

    Raises:
        DataError: it cannot be loaded, lacks a control token, or its chat template is of no format
            that is known.
    """
    name = config.model.tokenizer
    tokenizer = open_tokenizer(name)
    return tokenizer, ChatTokenizer(
        tokenizer, config.model.image_token, name=f"model.tokenizer {name}"
    )


def chat_template(stage: StageConfig, chat: ChatFormat = CHATML) -> str:
    """A Jinja template of the prompt that the model was trained with.

    The tokenizer's own template may insert a system message of its maker's into conversations that
    bring none. This one inserts the training's, so that a server that applies it feeds what `chat`
    feeds. An image stays the mark `<image>`: who applies the template expands it. Of a model
    trained with `image_boundary: block` each mark gets a line of its own.
    """
    lines = ["{%- set turns = namespace(system='') -%}"] if _joins_system(chat) else []
    system = "" if chat.always_has_system else None
    system = system if stage.system_message is None else stage.system_message
    if system is not None:
        first = f"[{{'role': 'system', 'content': {_literal(system)}}}]"
        lines += [
            "{%- if not messages or messages[0]['role'] != 'system' -%}",
            f"{{%- set messages = {first} + messages -%}}",
            "{%- endif -%}",
        ]
    lines += [
        f"{{{{- {_literal(chat.begin)} -}}}}" if chat.begin else "",
        "{%- for message in messages -%}",
        "{%- set content = message['content'] -%}",
        "{%- if content is not string -%}",
        "{{ raise_exception('content must be text; an image is the mark <image> in it') }}",
        "{%- endif -%}",
        *_stripped(chat),
        "{%- if message['role'] == 'system' -%}",
        *_system_turn(chat),
        "{%- elif message['role'] == 'user' -%}",
        *_question(chat, is_block=stage.image_boundary == "block"),
        "{%- elif message['role'] == 'assistant' -%}",
        _written(chat.around("assistant")[0] + chat.answer_start, chat.assistant[1]),
        "{%- else -%}",
        "{{ raise_exception('roles are system, user and assistant') }}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    if opening := chat.around("assistant")[0]:
        asked = f"{{{{- {_literal(opening)} -}}}}"
        lines += ["{%- if add_generation_prompt -%}", asked, "{%- endif -%}"]
    return "\n".join(filter(None, lines)) + "\n"


def _joins_system(chat: ChatFormat) -> bool:
    return chat.system_in_question is not None


def _stripped(chat: ChatFormat) -> list[str]:
    if not chat.strips:
        return []
    roles = ", ".join(_literal(role) for role in chat.strips)
    return [
        f"{{%- if message['role'] in [{roles}] -%}}",
        "{%- set content = content | trim -%}",
        "{%- endif -%}",
    ]


def _system_turn(chat: ChatFormat) -> list[str]:
    if chat.system_in_question is None:
        lines = [_written(*chat.system)]
    else:
        joined = f"turns.system + content + {_literal(chat.system_in_question)}"
        lines = [f"{{%- set turns.system = {joined} -%}}"]
    if chat.drops_empty_system:
        return ["{%- if content -%}", *lines, "{%- endif -%}"]
    return lines


def _question(chat: ChatFormat, is_block: bool) -> list[str]:
    before, after = map(_literal, chat.user)
    system = " + turns.system" if _joins_system(chat) else ""
    content = _TEMPLATE_IMAGE_LINES.rstrip() if is_block else "{{- content -}}"
    lines = [f"{{{{- {before}{system} -}}}}", content, f"{{{{- {after} -}}}}"]
    return [*lines, "{%- set turns.system = '' -%}"] if system else lines


def _written(before: str, after: str) -> str:
    return f"{{{{- {_literal(before)} + content + {_literal(after)} -}}}}"


def _literal(text: str) -> str:
    """Jinja reads `\n` and quotes in a literal as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def save_tokenizer(tokenizer: Any, chat: ChatTokenizer, stage: StageConfig, folder: Path) -> None:
    """Write `tokenizer` into `folder`, with the training's chat template.

    transformers 5 writes `tokenizer.json` and a short `tokenizer_config.json`. Added here is what
    transformers 4 wants besides, in particular with `use_fast=False`, which evaluation suites pass:
    `vocab.json` and `merges.txt`, the added tokens, and the older name of the special ones.
    """
    previous = tokenizer.chat_template, tokenizer.eos_token
    tokenizer.chat_template = chat_template(stage, chat.format)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chat.end_id)
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
