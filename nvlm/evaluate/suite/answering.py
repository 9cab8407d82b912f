"""The model's answers to a benchmark's questions, written as they come."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.questions import TOO_LONG
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

# Questions in a session: a few more than it answers at once.
_MAX_OPEN = 72
# Questions that are made ready ahead of these, and by how many threads.
_NUM_AHEAD = 16
_NUM_THREADS = 4
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
    with Session(engine) as session:
        if not parallel.is_model_parallel_main:
            session.follow()
            return
        progress = _Progress(asked.name, len(mine), parallel.data_size, parallel.is_main)
        with Part(folder, parallel.data_rank) as part:
            for row in _answers(engine, session, asked, mine, shots):
                part.add(row)
                progress.count()


def _answers(
    engine: Engine, session: Session, asked: Asked, items: Sequence[Item], shots: Shots
) -> Iterator[Row]:
    """A row for each item, in the order in which their answers end."""
    sampling = Sampling(max_new_tokens=asked.max_new_tokens)
    open_questions: dict[str, _Question] = {}

    def prepare(item: Item) -> _Question:
        conversation = conversation_of(asked, item, shots)
        most = asked.settings.max_num_tiles
        ready = make_ready(
            engine.config, engine.encoder, conversation, sampling.max_new_tokens, most
        )
        return _Question(item, conversation, ready)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        waiting = iter(items)
        ahead: deque[tuple[Item, Future[_Question]]] = deque()
        while True:
            for item in islice(waiting, _NUM_AHEAD - len(ahead)):
                ahead.append((item, pool.submit(prepare, item)))
            if not ahead and not open_questions:
                return
            # Waits for those that are not ready: which questions are answered beside which does
            # not depend on how fast a disk is.
            while ahead and len(open_questions) < _MAX_OPEN:
                item, future = ahead.popleft()
                try:
                    question = future.result()
                    session.add(item.key, question.ready.prompt, sampling)
                except SampleError as error:
                    yield _skipped(item, error.reason, error.detail)
                except DataError as error:  # no room in the session's cache
                    yield _skipped(item, TOO_LONG, str(error))
                else:
                    open_questions[item.key] = question
            for progress in session.step():
                question = open_questions[progress.key]
                question.texts.append(progress.text)
                question.num_tokens += len(progress.token_ids)
                if progress.finish_reason is not None:
                    del open_questions[progress.key]
                    yield question.row(progress.finish_reason)


def _skipped(item: Item, reason: str, detail: str) -> Row:
    return {"key": item.key, "skipped": {"reason": reason, "detail": detail}}


@dataclass
class _Question:
    """A question that is being answered."""

    item: Item
    conversation: Conversation
    ready: Ready
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0

    def row(self, finish_reason: str) -> Row:
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
