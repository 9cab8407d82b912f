"""What is asked of an engine, and what comes back. This file imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. The default is greedy."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: the most likely token, always
    top_p: float = 1.0  # of the most likely tokens, as many as have this share together
    top_k: int = 0  # of the most likely tokens, so many; 0: all
    seed: int = 0  # the same answer for the same prompt and seed, whatever is answered beside it
    stop: tuple[str, ...] = ()  # texts that end an answer, and are not part of it


@dataclass(frozen=True)
class Progress:
    """What one step added to one answer."""

    key: str
    text: str  # new text that later tokens cannot change; may be empty
    token_ids: tuple[int, ...]  # new tokens
    # Set with the last progress of an answer: `stop` (end of turn, or a stop text) or `length`.
    finish_reason: str | None = None
