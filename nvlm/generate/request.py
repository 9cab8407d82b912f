"""What is asked of an engine, and what comes back. This file imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from nvlm.errors import DataError

# What a generator takes as its seed.
_SEEDS = range(-(2**63), 2**64)


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. The default is greedy.

    Raises:
        DataError: a value that means nothing, such as a negative temperature; which one.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: the most likely token, always
    top_p: float = 1.0  # of the most likely tokens, as many as have this share together
    top_k: int = 0  # of the most likely tokens, so many; 0: all
    seed: int = 0  # the same answer for the same prompt and seed, whatever is answered beside it
    stop: tuple[str, ...] = ()  # texts that end an answer, and are not part of it

    def __post_init__(self) -> None:
        numbers = {part.name: getattr(self, part.name) for part in fields(self)}
        stop = numbers.pop("stop")
        for name in ("max_new_tokens", "top_k", "seed"):
            _check(_is_whole(numbers[name]), name, numbers[name], "a whole number")
        for name in ("temperature", "top_p"):
            _check(_is_number(numbers[name]), name, numbers[name], "a finite number")
        _check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        _check(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all tokens)")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or more")
        _check(self.seed in _SEEDS, "seed", self.seed, "a number of 64 bits")
        is_texts = isinstance(stop, tuple) and all(isinstance(s, str) and s for s in stop)
        _check(is_texts, "stop", stop, "texts that are not empty")


@dataclass(frozen=True)
class Progress:
    """What one step added to one answer."""

    key: str
    text: str  # new text that later tokens cannot change; may be empty
    token_ids: tuple[int, ...]  # new tokens
    # Set with the last progress of an answer: `stop` (end of turn, or a stop text) or `length`.
    finish_reason: str | None = None


def _check(is_right: bool, name: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise DataError(f"{name} is {value!r}; it has to be {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)
