"""`nvlm serve` under torchrun: the first process serves, the others follow it."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.beside_batches import SMALL
from helpers.served import (
    MODEL,
    Served,
    data_url,
    image_part,
    make_checkpoint,
    noise,
    serving,
    text_part,
    user,
)

from nvlm.generate.engine import Engine

SHEET = noise(900, 500)
QUESTIONS = [
    [user(image_part(data_url(SHEET)), text_part("What is this?"))],
    [user("Hello!")],
]
NUM_TOKENS = 12


def text_of(served: Served, messages: list) -> str:
    answer = served.client().chat.completions.create(
        model=MODEL, messages=messages, max_tokens=NUM_TOKENS
    )
    return answer.choices[0].message.content


@pytest.mark.parallel
@pytest.mark.parametrize(
    # What NVLM-H reads beside its row travels from stage to stage.
    ("layout", "sizes"),
    [("--tensor", []), ("--pipeline", SMALL["hybrid"])],
    ids=["--tensor", "--pipeline, NVLM-H"],
)
def test_answers_are_those_of_one_process(layout: str, sizes: list[str], tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path, *sizes)
    with Engine(checkpoint) as engine:
        marked = [("<image>\nWhat is this?", [SHEET]), ("Hello!", [])]
        own = [
            engine.prepare([{"role": "user", "content": text}], images, NUM_TOKENS)
            for text, images in marked
        ]
        engine.load()
        expected = [engine.answer(question, NUM_TOKENS).text for question in own]
    with serving(checkpoint, tmp_path, layout, "2", num_processes=2) as served:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda question: text_of(served, question), QUESTIONS * 2))
        assert together == expected * 2
        stream = served.client().chat.completions.create(
            model=MODEL, messages=QUESTIONS[0], max_tokens=1000, stream=True
        )
        for _ in range(3):
            next(stream)
        stream.close()
        assert text_of(served, QUESTIONS[0]) == expected[0], "after one that was cancelled"
        served.end(signal.SIGTERM)  # to torchrun, which tells both; the code is its own
        printed = served.log.read_text()
    assert f"{layout.strip('-')} 2" in printed and "2 processes" in printed
    assert printed.count("stopped by SIGTERM") == 1
    assert "Traceback" not in printed.partition("stopped by SIGTERM")[0]


@pytest.mark.parallel
def test_processes_that_one_model_does_not_take(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path)
    starting = serving(checkpoint, tmp_path, "--tensor", "1", num_processes=2)
    with pytest.raises(AssertionError) as failed, starting:
        pass
    assert "2 processes for a model of tensor 1 x pipeline 1: start 1, or" in str(failed.value)
