"""Answers in the making: questions come and go while others are answered.

The process that leads a model replica (`Parallel.is_model_parallel_main`) has the questions and
calls `add`, `step`, `cancel`; the replica's other processes call `follow`.
"""

from __future__ import annotations

from collections import deque

import torch

from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.engine import Engine
from nvlm.generate.request import Progress, Sampling


class Session:
    """The questions that an engine is answering."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: deque[tuple[str, EncodedPrompt, Sampling]] = deque()

    @property
    def num_open(self) -> int:
        """Questions without the end of their answer."""
        return len(self._waiting)

    def add(self, key: str, prompt: EncodedPrompt, sampling: Sampling) -> None:
        """Begin an answer with one of the next steps."""
        self._waiting.append((key, prompt, sampling))

    def cancel(self, key: str) -> None:
        """Forget a question; no more progress of it comes."""
        self._waiting = deque(item for item in self._waiting if item[0] != key)

    def step(self) -> list[Progress]:
        """Give some of the open questions a token or more."""
        if not self._waiting:
            return []
        key, prompt, sampling = self._waiting.popleft()
        engine = self._engine
        ids = engine.generate(
            prompt.tokens.tolist(),
            torch.from_numpy(prompt.tiles),
            sampling.max_new_tokens,
            stop_ids={engine.encoder.tokenizer.end_id},
        )
        ended = bool(ids) and ids[-1] == engine.encoder.tokenizer.end_id
        text = engine.text_of(ids)
        return [Progress(key, text, tuple(ids), "stop" if ended else "length")]
