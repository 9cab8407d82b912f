"""Prompt pools: the wordings that ask for a sample whose question is not written out.

A pool is a list of texts. Which samples it can ask follows from the fields in its texts: a pool
for questions has `{question}` in each, one for captions has none. A text with a field is filled in
once, so a question that happens to contain `{choices}` stays as it is.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from nvlm.config.yaml_file import read_document
from nvlm.errors import ConfigError, DataError
from nvlm.hashes import hash_json

# Fields that a pool's texts may have; kinds.py says which kind of sample fills which.
FIELDS = ("question", "choices", "text", "region")
_FIELD = re.compile(r"\{(\w+)\}")
_OWN_POOLS = Path(__file__).with_name("prompt_pools.yaml")

# Pool name -> its texts.
Pools = dict[str, list[str]]


def load_prompt_pools(path: str | None, num_wordings: int | None = None) -> Pools:
    """The pools that come with nvlm; with `path`, those of that YAML file over them, by name.

    Args:
        num_wordings: texts of each that are used, its first ones; None: all.

    Raises:
        DataError: the file is not a mapping of names to lists of texts, or texts of a pool have
            different or unknown fields.
    """
    pools = dict(_read(_OWN_POOLS))
    if path is not None:
        pools |= _read(Path(path))
    return {name: prompts[:num_wordings] for name, prompts in pools.items()}


def fill(prompt: str, values: dict[str, str]) -> str:
    """`prompt` with its fields replaced."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), prompt)


def fields_of(prompt: str) -> frozenset[str]:
    return frozenset(_FIELD.findall(prompt))


def fingerprint(pools: Pools) -> str:
    return hash_json(pools)


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Pools:
    try:
        value = read_document(path, "file of prompt pools")
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(value, dict):
        raise DataError(f"prompt pools {path}: must be a mapping of names to lists of texts")
    for name, prompts in value.items():
        _check(f"prompt pools {path}: {name}", prompts)
    return value


def _check(where: str, prompts: Any) -> None:
    if not isinstance(prompts, list) or not prompts:
        raise DataError(f"{where}: must be a list of at least one text")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{where}: {prompt!r} is not a text")
        if "<image>" in prompt or "<video>" in prompt:
            raise DataError(
                f"{where}: {prompt!r} has an image mark; images come first by themselves"
            )
        unknown = sorted(fields_of(prompt) - set(FIELDS))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise DataError(f"{where}: {prompt!r} has the field {{{unknown[0]}}}; known: {known}")
    if len({fields_of(prompt) for prompt in prompts}) > 1:
        raise DataError(f"{where}: its texts have different fields")
