"""How conversations are written: what stands around each role's text, and what of it is a token.

`chat_format` of the configuration says it, a dict with the keys of `CHATML`:

    controls: the texts that are one control token each
    begin, end: what every sequence begins with; what ends a text without roles
    system, user, assistant: the texts before and after a content of the role
    stops: tokens that end an answer, besides what stands after one
    answer_lead: before every answer, part of what is answered to
    answer_start: before every answer, part of it
    system_in_question: joins a system text to the question after it; None: it is a turn
    always_has_system: without a system text there is an empty system turn
    strips: roles whose contents lose the white space around them
    drops_empty_system: an empty system text is none
"""

import copy
import json
import re

from tokenizers import Tokenizer
from transformers.utils import cached_file

# Parts of a tokenizer's definition.
_BEFORE_MODEL = ("normalizer", "pre_tokenizer")
CHATML = {
    "controls": ["<|im_start|>", "<|im_end|>"],
    "system": ["<|im_start|>system\n", "<|im_end|>\n"],
    "user": ["<|im_start|>user\n", "<|im_end|>\n"],
    "assistant": ["<|im_start|>assistant\n", "<|im_end|>\n"],
    "end": "<|im_end|>",
    "begin": "",
    "stops": [],
    "answer_lead": "",
    "answer_start": "",
    "system_in_question": None,
    "always_has_system": False,
    "strips": [],
    "drops_empty_system": False,
}


def split_controls(chat_format, text):
    """A text of the format in its control tokens and what stands between them, none empty."""
    pattern = f"({'|'.join(map(re.escape, chat_format['controls']))})"
    return [part for part in re.split(pattern, text) if part]


def answer_opening(chat_format):
    """What stands before an answer."""
    return chat_format["assistant"][0] + chat_format["answer_lead"]


def written_turns(chat_format, system_message, turns):
    """(role, before, joined, content, after) of each turn; see `chat_format`.

    Args:
        system_message: None for none.
        turns: (role, content) pairs, of which a user's is the last.
    """
    strips, joiner = chat_format["strips"], chat_format["system_in_question"]
    joined = ""
    if system_message is not None and "system" in strips:
        system_message = system_message.strip()
    if chat_format["drops_empty_system"] and not system_message:
        system_message = None
    if system_message is None and chat_format["always_has_system"]:
        system_message = ""
    if system_message is not None:
        if joiner is None:
            before, after = chat_format["system"]
            yield "system", before, "", system_message, after
        else:
            joined = system_message + joiner
    for role, content in turns:
        before, after = chat_format[role]
        if role in strips:
            content = content.strip()
        if role == "user":
            yield role, before, joined, content, after
            joined = ""
        else:
            content = chat_format["answer_start"] + content
            yield role, answer_opening(chat_format), "", content, after


def plain_tokenizers(tokenizer):
    """Copies of the tokenizer's core to which control tokens are ordinary text.

    One for text after a control token, one for text after other text: sentencepiece's models put a
    space before what follows a control token.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        # A tokenizer in Python (`use_fast=False` before transformers 5): its folder has the core.
        core = Tokenizer.from_file(str(cached_file(tokenizer.name_or_path, "tokenizer.json")))
    definition = json.loads(core.to_str())
    definition.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    for step in _steps(definition):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    # A vocabulary takes seconds to copy, and is the same.
    within = definition | {name: copy.deepcopy(definition[name]) for name in _BEFORE_MODEL}
    for step in _steps(within):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        elif step["type"] == "Prepend":
            step["prepend"] = ""
    after_control = Tokenizer.from_str(json.dumps(definition))
    if within == definition:
        return after_control, after_control
    return after_control, Tokenizer.from_str(json.dumps(within))


def _steps(definition):
    """What is done to a text before the model."""
    steps = []
    for name in _BEFORE_MODEL:
        whole = definition[name] or {}
        steps += whole.get("normalizers") or whole.get("pretokenizers") or [whole]
    return [step for step in steps if step]
