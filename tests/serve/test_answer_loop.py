"""The loop that answers: what is delivered where a question is cancelled, cannot be, or fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from queue import Queue

import pytest
from helpers.served import make_checkpoint

from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.engine import Engine
from nvlm.generate.request import Progress, Sampling
from nvlm.generate.session import Session
from nvlm.serve import bodies
from nvlm.serve.answer_loop import AnswerLoop
from nvlm.serve.api_errors import ApiError
from nvlm.serve.limits import Limits
from nvlm.serve.service import Question, Service

NUM_TOKENS = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(make_checkpoint(tmp_path_factory.mktemp("looped"))) as opened:
        opened.load()
        yield opened


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> EncodedPrompt:
    return engine.prepare([{"role": "user", "content": "Hello!"}], [], 1000)


def text_until_end(delivered: Queue) -> str:
    text = ""
    while True:
        item = delivered.get(timeout=60)
        if isinstance(item, ApiError):
            raise item
        text += item.text
        if item.finish_reason:
            return text


def test_questions_come_from_other_threads(engine: Engine, prompt: EncodedPrompt):
    expected = engine.answer(prompt, NUM_TOKENS).text
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        delivered: Queue[Progress | ApiError] = Queue()
        loop.ask(f"{number}", prompt, Sampling(max_new_tokens=NUM_TOKENS), delivered.put)
        texts[number] = text_until_end(delivered)
        if len(texts) == 4:
            loop.end(60)

    with Session(engine) as session:
        loop = AnswerLoop(session)
        for number in range(4):
            threading.Thread(target=ask, args=(number,), daemon=True).start()
        loop.run()
        assert texts == dict.fromkeys(range(4), expected)
        assert (loop.num_open, session.num_open) == (0, 0)


def test_a_cancelled_question_is_forgotten(engine: Engine, prompt: EncodedPrompt):
    """Before it was taken in, and while it is answered; what was never asked is no matter."""
    seen: list[Progress | ApiError] = []
    with Session(engine) as session:
        loop = AnswerLoop(session)

        def deliver(item: Progress | ApiError) -> None:
            seen.append(item)
            if len(seen) == 3:
                loop.cancel("long")
                loop.end(60)

        loop.ask("gone", prompt, Sampling(), seen.append)
        loop.cancel("gone")
        loop.cancel("never asked")
        loop.ask("long", prompt, Sampling(max_new_tokens=1000), deliver)
        loop.run()
        assert len(seen) == 3 and session.num_open == 0


def test_the_end_waits_and_then_does_not(engine: Engine, prompt: EncodedPrompt):
    for grace_seconds in (60, 0):
        delivered: Queue[Progress | ApiError] = Queue()
        late: Queue[Progress | ApiError] = Queue()
        with Session(engine) as session:
            loop = AnswerLoop(session)
            loop.ask("open", prompt, Sampling(max_new_tokens=NUM_TOKENS), delivered.put)
            loop.end(grace_seconds)
            loop.ask("late", prompt, Sampling(), late.put)
            loop.run()
            loop.ask("too late", prompt, Sampling(), late.put)
        assert [late.get(timeout=1).status for _ in range(2)] == [503, 503]
        if grace_seconds:
            assert text_until_end(delivered) == engine.answer(prompt, NUM_TOKENS).text
        else:
            with pytest.raises(ApiError, match="is ending") as caught:
                text_until_end(delivered)
            assert caught.value.status == 503


def test_what_can_never_be_answered_is_refused(engine: Engine, prompt: EncodedPrompt):
    delivered: Queue[Progress | ApiError] = Queue()
    with Session(engine) as session:
        loop = AnswerLoop(session)
        loop.ask("too long", prompt, Sampling(max_new_tokens=10**6), delivered.put)
        loop.end(0)
        loop.run()
    with pytest.raises(ApiError, match="positions") as caught:
        text_until_end(delivered)
    assert caught.value.status == 400


def test_a_step_that_fails_ends_all(engine: Engine, prompt: EncodedPrompt, monkeypatch):
    """Clients learn that, and no more; who runs the server gets the error itself."""
    delivered: Queue[Progress | ApiError] = Queue()
    with Session(engine) as session:
        loop = AnswerLoop(session)

        def fail() -> list[Progress]:
            raise RuntimeError("out of memory at /secret/place")

        monkeypatch.setattr(session, "step", fail)
        loop.ask("a", prompt, Sampling(), delivered.put)
        with pytest.raises(RuntimeError, match="secret"):
            loop.run()
        session.cancel("a")
    with pytest.raises(ApiError) as caught:
        text_until_end(delivered)
    assert (caught.value.status, caught.value.code) == (500, "internal_error")
    assert "secret" not in caught.value.message


def test_a_stream_that_has_begun_is_answered(engine: Engine, prompt: EncodedPrompt):
    """The server is told to end when its client has the first event and no more."""
    question = Question(prompt, Sampling(NUM_TOKENS), bodies.Head("a", 0, "m"), True, False)
    limits = Limits(max_image_megapixels=1)

    async def stream(loop: AnswerLoop) -> list[bytes]:
        service = Service(engine, loop, "m", limits)
        events = service.streamed_answer(question, asyncio.get_running_loop().time() + 60)
        sent = [await anext(events)]
        loop.end(60)
        await asyncio.to_thread(loop.run)
        return sent + [event async for event in events]

    with Session(engine) as session:
        *events, end = asyncio.run(stream(AnswerLoop(session)))
    assert end == bodies.END_OF_STREAM
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == engine.answer(prompt, NUM_TOKENS).text
