"""Answers in the making: questions come and go while others are answered.

The process that leads a model replica (`Parallel.is_model_parallel_main`) has the questions and
calls `add`, `step`, `cancel`; the replica's other processes call `follow`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nvlm.data.text.encode import EncodedPrompt
from nvlm.errors import DataError, NvlmError
from nvlm.failures import explain
from nvlm.generate.answer_text import AnswerText
from nvlm.generate.engine import Engine
from nvlm.generate.greedy import check_positions
from nvlm.generate.request import Progress, Sampling

# Questions that are answered at once, unless a session is told otherwise.
MAX_OPEN = 64
# Tokens of prompts that one step may begin with, unless a single one is longer: who is being
# answered waits so long for the next token.
_MAX_PROMPT_TOKENS_PER_STEP = 4096


@dataclass
class _Question:
    key: str
    prompt: EncodedPrompt
    sampling: Sampling
    text: AnswerText
    num_new_tokens: int = 0


class Session:
    """The questions that an engine is answering; every process of a replica makes one.

    To be left as a context manager, or with `close`, so that `follow` returns elsewhere; where it
    is not, the engine's end is its end. Replicas know nothing of each other.

    Questions wait in the order in which they came until a place and room in the cache are free.
    Room is taken for the prompt and the longest answer, so that what has begun is never put off.
    """

    def __init__(
        self, engine: Engine, max_open: int = MAX_OPEN, max_cache_tokens: int | None = None
    ):
        """
        Args:
            engine: loaded.
            max_open: questions that are answered at once.
            max_cache_tokens: of all their prompts and answers together, each rounded up to the
                length of its row (`nvlm.model.parts.cache.row_length`). None: what the memory of
                the replica's processes allows, `Engine.max_cache_tokens`.
        """
        # Megatron-core may only be imported once `load` chose the platform.
        from nvlm.generate.decoder import Decoder
        from nvlm.generate.replica import Replica

        self._engine = engine
        self._max_open = max_open
        self._decoder = Decoder(
            engine.model,
            engine.config,
            engine.encoder.tokenizer.image_id,
            engine.max_cache_tokens if max_cache_tokens is None else max_cache_tokens,
            engine.thrift,
        )
        self._waiting: deque[_Question] = deque()
        self._begun: dict[str, _Question] = {}
        self._ended: list[str] = []  # their rows are given back with the next step
        self._leads = engine.parallel.is_model_parallel_main
        self._replica = Replica(engine.parallel)
        self._is_running = True  # others wait for what comes next
        engine.at_end.append(self.close)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, _: object, failure: BaseException | None, *__: object) -> None:
        self.close(failure)

    def close(self, failure: BaseException | None = None) -> None:
        """Forget all questions, and let the replica's other processes return from `follow`.

        Args:
            failure: because of which it ends; the others raise what it says.
        """
        from nvlm.generate.replica import End

        if self.close in self._engine.at_end:
            self._engine.at_end.remove(self.close)
        self._waiting.clear()
        self._begun.clear()
        if self._leads and self._is_running:
            self._is_running = False
            says = ""
            if isinstance(failure, Exception):  # not where somebody ends the program
                says = explain(failure) or f"{type(failure).__name__}: {failure}"
            self._replica.send(End(says))

    def follow(self) -> None:
        """On all processes but the leading one: compute what it asks for, until it closes.

        Raises:
            NvlmError: it failed; what it says of that.
        """
        from nvlm.generate.decoder import Work
        from nvlm.generate.replica import End

        assert not self._leads, "the leading process has the questions"
        while True:
            message = self._replica.receive()
            if isinstance(message, Work):
                self._decoder.run(message)
            elif isinstance(message, End):
                self._is_running = False
                if message.failure:
                    raise NvlmError(message.failure)
                return

    @property
    def num_open(self) -> int:
        """Questions without the end of their answer."""
        return len(self._waiting) + len(self._begun)

    def add(self, key: str, prompt: EncodedPrompt, sampling: Sampling) -> None:
        """Begin an answer with one of the next steps.

        Args:
            key: names the question in `Progress`; not that of another open one.
            prompt: see `Engine.prepare`.

        Raises:
            DataError: prompt and answer can never fit the model's positions or the cache.
        """
        from nvlm.generate.decoder import check_tiles

        assert self._leads and self._is_running
        assert key not in self._begun and all(key != q.key for q in self._waiting), key
        config, num_tokens = self._engine.config, len(prompt.tokens)
        num_placeholders, num_tiles = int(prompt.image_mask.sum()), len(prompt.tiles)
        thrift = self._engine.thrift
        check_tiles(config, thrift, num_placeholders, num_tiles, prompt.beside, prompt.grids)
        check_positions(config, num_tokens, sampling.max_new_tokens)
        text = AnswerText(self._engine.tokenizer, sampling.stop)
        question = _Question(key, prompt, sampling, text)
        room, limit = self._room(question), self._decoder.cache.max_tokens
        if room > limit:
            raise DataError(
                f"a prompt of {num_tokens:,} tokens and {sampling.max_new_tokens:,} new ones take "
                f"{room:,} of the cache, which has room for {limit:,}: use a shorter "
                "prompt, fewer images or fewer new tokens, or more processes per model"
            )
        self._waiting.append(question)

    def cancel(self, key: str) -> None:
        """Forget a question, if it is open; no more progress of it comes."""
        from nvlm.generate.replica import Rest

        self._waiting = deque(question for question in self._waiting if question.key != key)
        if self._begun.pop(key, None):
            self._ended.append(key)
        if not self.num_open and self._is_running:
            self._replica.send(Rest())

    def step(self) -> list[Progress]:
        """Give every question that has begun its next token, and begin some that wait."""
        from nvlm.generate.replica import Rest

        if not self.num_open:
            return []
        tokens = self._run(self._begin_some())
        progress = [self._progress(self._begun[key], token) for key, token in tokens.items()]
        if not self.num_open:
            self._replica.send(Rest())
        return progress

    def _run(self, begun: Sequence[_Question]) -> dict[str, int]:
        from nvlm.generate.decoder import Begun, Work

        work = Work(
            tuple(self._ended),
            tuple(
                Begun(
                    q.key,
                    q.prompt.tokens,
                    torch.from_numpy(q.prompt.tiles),
                    len(q.prompt.tiles),
                    q.sampling,
                    q.prompt.beside,
                    q.prompt.alignment,
                    q.prompt.grids,
                )
                for q in begun
            ),
        )
        self._ended = []
        # If this fails, others may wait in the middle of it: no message would reach them.
        self._is_running = False
        self._replica.send(work)
        tokens = self._decoder.run(work)
        self._is_running = True
        return tokens

    def _begin_some(self) -> list[_Question]:
        """The first that wait, as many as there is room for."""
        cache = self._decoder.cache
        # Rows of those that ended are free by the time that new ones are taken.
        taken = sum(map(self._room, self._begun.values()))
        begun: list[_Question] = []
        num_tokens = 0
        while self._waiting and len(self._begun) < self._max_open:
            question = self._waiting[0]
            num_tokens += len(question.prompt.tokens)
            taken += self._room(question)
            if taken > cache.max_tokens or (begun and num_tokens > _MAX_PROMPT_TOKENS_PER_STEP):
                break
            self._begun[question.key] = self._waiting.popleft()
            begun.append(question)
        return begun

    def _progress(self, question: _Question, token: int) -> Progress:
        question.num_new_tokens += 1
        is_end = token in self._engine.stop_ids
        text = question.text.add(token)
        reason = None
        if is_end or question.text.has_stopped:
            reason = "stop"
        elif question.num_new_tokens == question.sampling.max_new_tokens:
            reason = "length"
        if reason is not None:
            text += question.text.finish()
            if question.text.has_stopped:
                reason = "stop"
            del self._begun[question.key]
            self._ended.append(question.key)
        return Progress(question.key, text, (token,), reason)

    def _room(self, question: _Question) -> int:
        """Tokens that its row of the cache has."""
        from nvlm.generate.decoder import num_tokens_beside
        from nvlm.model.parts.cache import row_length

        num_cached = self._engine.thrift.num_cached(len(question.prompt.tokens))
        num_tokens = num_cached + question.sampling.max_new_tokens
        # What cross-attention reads lies in the same row.
        return row_length(max(num_tokens, num_tokens_beside(question.prompt.beside)))
