"""The model's answers to a benchmark's questions, written as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.conversation import Conversation, converse
from nvlm.evaluate.suite.folder import Part, Row
from nvlm.evaluate.suite.items import Shots
from nvlm.evaluate.suite.prepare import Ready, make_ready
from nvlm.evaluate.suite.scores import item_fields
from nvlm.evaluate.suite.settings import Asked
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.printing import say

# Questions whose pictures are in memory.
_MAX_OPEN = 32
_SECONDS_BETWEEN_LINES = 10.0


def check_same_questions(
    asked: Asked, items: Sequence[Item], shots: Shots, rows: dict[str, Row], folder: Path
) -> None:
    """See that the rows that are there were asked as they would be now.

    Raises:
        DataError: one was not, or is of another question.
    """
    by_key = {item.key: item for item in items}
    for key, row in rows.items():
        if key not in by_key:
            raise DataError(
                f"{folder} has an answer to {key}, which is not asked; remove the folder, or give "
                "another --out"
            )
        if "skipped" in row:
            continue
        now = conversation_of(asked, by_key[key], shots)
        if row["messages"] != now.messages:
            raise DataError(
                f"{folder} has an answer to {key}, which was asked in other words, such as by "
                "another version of nvlm; remove the folder, or give another --out"
            )


def conversation_of(asked: Asked, item: Item, shots: Shots) -> Conversation:
    return converse(asked.benchmark, item, shots.before(item), asked.settings)


def answer_items(
    engine: Engine, asked: Asked, items: Sequence[Item], shots: Shots, folder: Path
) -> None:
    """Answer this replica's share of `items`; each is in its part of `folder` once it is known.

    Every process calls this; the one that leads its replica writes.
    """
    parallel = engine.parallel
    mine = items[parallel.data_rank :: parallel.data_size]
    progress = _Progress(asked.name, len(mine), parallel.data_size, parallel.is_main)
    part = Part(folder, parallel.data_rank) if parallel.is_model_parallel_main else nullcontext()
    with part as file:
        for row in _answers(engine, asked, mine, shots):
            if file is not None:
                file.add(row)
            progress.count()


def _answers(engine: Engine, asked: Asked, items: Sequence[Item], shots: Shots) -> Iterator[Row]:
    session = Session(engine)
    sampling = Sampling(max_new_tokens=asked.max_new_tokens)
    open_rows: dict[str, _OpenRow] = {}
    waiting = iter(items)
    is_done = False
    while open_rows or not is_done:
        while not is_done and len(open_rows) < _MAX_OPEN:
            item = next(waiting, None)
            if item is None:
                is_done = True
                break
            conversation = conversation_of(asked, item, shots)
            try:
                ready = make_ready(
                    engine, conversation, sampling.max_new_tokens, asked.settings.max_num_tiles
                )
            except SampleError as error:
                yield {"key": item.key, "skipped": {"reason": error.reason, "detail": error.detail}}
                continue
            open_rows[item.key] = _OpenRow(item, conversation, ready)
            session.add(item.key, ready.prompt, sampling)
        for progress in session.step():
            row = open_rows[progress.key]
            row.texts.append(progress.text)
            row.num_tokens += len(progress.token_ids)
            if progress.finish_reason is not None:
                del open_rows[progress.key]
                yield row.finished(progress.finish_reason)


@dataclass
class _OpenRow:
    """A question that is being answered."""

    item: Item
    conversation: Conversation
    ready: Ready
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0

    def finished(self, finish_reason: str) -> Row:
        return {
            **item_fields(self.item),
            "messages": self.conversation.messages,
            "images": self.ready.image_hashes,
            "max_num_tiles": self.ready.max_num_tiles,
            "repaired": self.ready.repairs,
            "num_prompt_tokens": len(self.ready.prompt.tokens),
            "answer": "".join(self.texts).strip(),
            "num_tokens": self.num_tokens,
            "finish_reason": finish_reason,
        }


class _Progress:
    """Says now and then how far the first process's replica is; the others are about as far."""

    def __init__(self, name: str, num_items: int, num_replicas: int, is_heard: bool):
        self._name, self._num_items, self._num_replicas = name, num_items, num_replicas
        self._is_heard = is_heard
        self._num_done = 0
        self._start = self._said = time.monotonic()

    def count(self) -> None:
        self._num_done += 1
        now = time.monotonic()
        if not self._is_heard or now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        rate = self._num_done / (now - self._start)
        left = (self._num_items - self._num_done) / rate
        share = self._num_done / self._num_items
        say(
            f"{self._name}: {share:.0%} of {self._num_items * self._num_replicas:,} or so, "
            f"{rate * self._num_replicas:.2f}/s, {spoken_minutes(left)} left",
            sys.stderr,
        )


def spoken_minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
