"""The only place that touches a session: questions come in from other threads, progress goes out.

`run` belongs on the thread that loaded the model, the main one, and steps the session as long as
there are open questions; it sleeps where there are none. Whoever asks hands over a function that is
called, on that thread, with each `Progress`, or with the `ApiError` that ends the answer instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from nvlm.errors import DataError
from nvlm.generate.request import Progress, Sampling
from nvlm.serve.api_errors import ApiError, bad_request, ending, failed

if TYPE_CHECKING:
    from nvlm.data.text.encode import EncodedPrompt
    from nvlm.generate.session import Session

Deliver = Callable[[Progress | ApiError], None]


@dataclass(frozen=True)
class _Question:
    key: str
    prompt: EncodedPrompt
    sampling: Sampling
    deliver: Deliver


@dataclass(frozen=True)
class _Cancel:
    key: str


@dataclass(frozen=True)
class _End:
    grace_seconds: float


class AnswerLoop:
    """Every method but `run` may be called by any thread; `end` by a signal's handler, too."""

    def __init__(self, session: Session):
        self._session = session
        # Of all queues the one that a signal's handler may use while its thread waits in it.
        self._inbox: SimpleQueue[_Question | _Cancel | _End] = SimpleQueue()
        self._deliver: dict[str, Deliver] = {}
        self._deadline: float | None = None
        self._left: ApiError | None = None  # once it is over: what questions get instead

    @property
    def num_open(self) -> int:
        """Questions without the end of their answer."""
        return len(self._deliver)

    def ask(self, key: str, prompt: EncodedPrompt, sampling: Sampling, deliver: Deliver) -> None:
        self._inbox.put(_Question(key, prompt, sampling, deliver))
        if self._left is not None:
            self._refuse_rest()

    def cancel(self, key: str) -> None:
        """Nothing more is delivered of it, but for what is on its way. Unknown keys are ended."""
        self._inbox.put(_Cancel(key))

    def end(self, grace_seconds: float) -> None:
        """Take no more questions, and return from `run` with the last answer or in that time."""
        self._inbox.put(_End(grace_seconds))

    def run(self) -> None:
        """Until `end`. What a step raises ends all answers with an error, and is raised."""
        left = failed()
        try:
            while self._take_in():
                if self._session.num_open:
                    for progress in self._session.step():
                        self._hand_out(progress)
            left = ending()
        finally:
            self._left = left
            for deliver in self._deliver.values():
                deliver(left)
            self._deliver.clear()
            self._refuse_rest()

    def _refuse_rest(self) -> None:
        """What came too late to be taken in."""
        while True:
            try:
                item = self._inbox.get(block=False)
            except Empty:
                return
            if isinstance(item, _Question):
                item.deliver(self._left or ending())

    def _take_in(self) -> bool:
        """Take what has come, or wait for it where nothing is open; False: it is time to end."""
        is_idle = not self._session.num_open
        while True:
            if self._deadline is not None and (
                not self._session.num_open or time.monotonic() > self._deadline
            ):
                return False
            try:
                item = self._inbox.get(block=is_idle)
            except Empty:
                return True
            is_idle = False
            if isinstance(item, _Question):
                self._begin(item)
            elif isinstance(item, _Cancel):
                if self._deliver.pop(item.key, None):
                    self._session.cancel(item.key)
            else:
                self._deadline = time.monotonic() + item.grace_seconds

    def _begin(self, question: _Question) -> None:
        if self._deadline is not None:
            question.deliver(ending())
            return
        try:
            self._session.add(question.key, question.prompt, question.sampling)
        except DataError as error:
            question.deliver(bad_request(str(error)))
            return
        self._deliver[question.key] = question.deliver

    def _hand_out(self, progress: Progress) -> None:
        deliver = self._deliver.get(progress.key)
        if deliver is None:
            return
        if progress.finish_reason is not None:
            del self._deliver[progress.key]
        deliver(progress)
