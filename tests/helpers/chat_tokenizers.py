"""Small real tokenizers of the families of decoders, with templates that write what theirs write.

The templates are our own, shorter; they write what the published ones write without tools
(`WRITES` of tests/data/text/test_chat_template.py has it word by word).
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from helpers.qwen_tokenizer import SPLIT

# Llama 3 takes up to three digits together, Qwen2 one.
LLAMA3_SPLIT = SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_TEXTS = [
    "<Image><tile_1>", "</Image>\n", "<tile_global_thumbnail>", "assistant\n", "user\n\n", "system",
    "What is in the picture?", "[INST] Read the number. [/INST] It is 448.",
    "Answer the questions.",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "<think> </think>",
]  # fmt: skip

_SPLIT_SYSTEM = (
    "{% set first = messages[0] %}{% if first.role == 'system' %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
)
_ALTERNATE = (
    "{% for turn in turns %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)


def chatml(before: str = "") -> str:
    return (
        before + "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content"
        " + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _brings(text: str) -> str:
    return (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + text + "<|im_end|>\n' }}"
        "{% endif %}"
    )


_QWEN3 = """\
{%- set places = namespace(last=0) -%}
{%- for turn in messages if turn.role == 'user' -%}
{%- set places.last = messages.index(turn) -%}
{%- endfor -%}
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\n' -}}
{%- if turn.role == 'assistant' and loop.index0 > places.last and loop.last -%}
{{- '<think>\n\n</think>\n\n' + turn.content.lstrip('\n') -}}
{%- else -%}
{{- turn.content -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\n\n</think>\n\n' -}}
{%- endif -%}
{%- endif -%}"""

_YI15 = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for turn in messages %}{% if turn.role == 'user' %}"
    "{{ '<|im_start|>user\n' + turn.content + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif turn.role == 'assistant' %}{{ turn.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)

_LLAMA_TURNS = (
    "{% for turn in TURNS %}{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n'"
    " + turn.content | trim + '<|eot_id|>' }}{% endfor %}"
)
_LLAMA_ANSWER = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
_LLAMA_ASKED = f"{{% if add_generation_prompt %}}{_LLAMA_ANSWER}{{% endif %}}"
_LLAMA_SYSTEM = (
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: ' + date_string + '\n\n' }}"
    "{% if first.role == 'system' %}{{ first.content | trim }}{% endif %}{{ '<|eot_id|>' }}"
)
_LLAMA31 = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = DATE %}{% endif %}"
    + _SPLIT_SYSTEM + _LLAMA_SYSTEM + _LLAMA_TURNS.replace("TURNS", "turns") + _LLAMA_ASKED
)  # fmt: skip


def _mistral(inst: str, close: str, answer: str, place: str) -> str:
    return (
        _SPLIT_SYSTEM + _ALTERNATE + "{{ bos_token }}{% for turn in turns %}"
        "{% if turn.role == 'user' %}{{ '" + inst + "' }}"
        "{% if loop." + place + " and first.role == 'system' %}{{ first.content + '\n\n' }}"
        "{% endif %}{{ turn.content + '" + close + "' }}"
        "{% else %}{{ " + answer + " + eos_token }}{% endif %}{% endfor %}"
    )


TEMPLATES = {
    "qwen2": chatml(_brings("You are a helpful assistant.")),
    "qwen2.5": chatml(
        _brings("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    ),
    "qwen3": _QWEN3,
    "yi": chatml(),
    "yi_1.5": _YI15,
    # Writes the beginning of an answer whether it is asked for or not.
    "llama3": "{{ bos_token }}" + _LLAMA_TURNS.replace("TURNS", "messages") + _LLAMA_ANSWER,
    "llama3.1": _LLAMA31.replace("DATE", "'26 Jul 2024'"),
    "llama3.2": _LLAMA31.replace("DATE", "strftime_now('%d %b %Y')"),
    "mistral_v0.1": (
        "{{ bos_token }}{% set turns = messages %}" + _ALTERNATE + "{% for turn in turns %}"
        "{{ '[INST] ' + turn.content + ' [/INST]' if turn.role == 'user'"
        " else turn.content + eos_token }}{% endfor %}"
    ),
    "mistral": _mistral(" [INST] ", " [/INST]", "' ' + turn.content", "first"),
    "mistral_v3": _mistral("[INST] ", "[/INST]", "' ' + turn.content | trim", "last"),
    "mistral_nemo": _mistral("[INST]", "[/INST]", "turn.content", "last"),
    "mistral_v7": (
        _SPLIT_SYSTEM + "{{ bos_token + '[SYSTEM_PROMPT]' }}"
        "{{ first.content if first.role == 'system' else 'Today is ' + strftime_now('%Y-%m-%d') }}"
        "{{ '[/SYSTEM_PROMPT]' }}{% for turn in turns %}{{ '[INST]' + turn.content + '[/INST]'"
        " if turn.role == 'user' else turn.content + eos_token }}{% endfor %}"
    ),
}  # fmt: skip

_CHATML = ["<|im_start|>", "<|im_end|>"]
_LLAMA3 = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|reserved_special_token_1|>",
]  # fmt: skip
_TEKKEN = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
           "[IMG]"]  # fmt: skip
_SENTENCES = ["<unk>", "<s>", "</s>"]
# Special tokens, whether it is a sentencepiece model, what begins and ends a text, and what can
# stand for images.
KINDS: dict[str, tuple[list[str], bool, str | None, str, str]] = {
    "qwen2": (["<|endoftext|>", *_CHATML, "<|vision_pad|>"], False, None, "<|im_end|>",
              "<|vision_pad|>"),
    "yi": ([*_SENTENCES, *_CHATML, "<|Human|>"], True, "<s>", "<|im_end|>", "<|Human|>"),
    "llama3": (_LLAMA3, False, "<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"),
    "mistral": (_SENTENCES, True, "<s>", "</s>", "<unk>"),
    "mistral_v3": ([*_SENTENCES, "[INST]", "[/INST]", "[control_8]"], True, "<s>", "</s>",
                   "[control_8]"),
    "mistral_nemo": (_TEKKEN, False, "<s>", "</s>", "[IMG]"),
}  # fmt: skip
# Template -> the kind of tokenizer that has it.
KIND_OF = {
    "qwen2": "qwen2", "qwen2.5": "qwen2", "qwen3": "qwen2", "yi": "yi", "yi_1.5": "yi",
    "llama3": "llama3", "llama3.1": "llama3", "llama3.2": "llama3",
    "mistral_v0.1": "mistral", "mistral": "mistral", "mistral_v3": "mistral_v3",
    "mistral_nemo": "mistral_nemo", "mistral_v7": "mistral_nemo",
}  # fmt: skip


def build_tokenizer(name: str, **settings: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with the template `name` of `TEMPLATES`."""
    special, is_sentencepiece, begin, end, _ = KINDS[KIND_OF[name]]
    backend = _sentencepiece(special) if is_sentencepiece else _byte_level(name, special)
    if name == "qwen3":
        # Added, but not special: they are shown in answers.
        backend.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin, eos_token=end)
    tokenizer.chat_template = settings.get("chat_template", TEMPLATES[name])
    return tokenizer


def image_token(name: str) -> str:
    return KINDS[KIND_OF[name]][4]


def _byte_level(name: str, special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    split = SPLIT if KIND_OF[name] == "qwen2" else LLAMA3_SPLIT
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(backend, special, initial_alphabet=alphabet)


def _sentencepiece(special: list[str]) -> Tokenizer:
    """As converted from Llama 2's and Mistral's models: a space is put before each text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # No token goes across words.
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trained = _trained(backend, special + [f"<0x{byte:02X}>" for byte in range(256)])
    trained.pre_tokenizer = None
    return trained


def _trained(backend: Tokenizer, special: list[str], **settings: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, show_progress=False, **settings
    )
    backend.train_from_iterator(_TEXTS * 20, trainer)
    return backend
