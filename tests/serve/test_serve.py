"""`nvlm serve` as its users have it: a process on this machine, asked by OpenAI's own client."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers import spawn
from helpers.beside_batches import FUSIONS, SMALL
from helpers.served import (
    MODEL,
    Served,
    data_url,
    image_part,
    make_checkpoint,
    noise,
    png_bomb,
    serving,
    text_part,
    url_of_bytes,
    user,
)

SHEET = noise(900, 500)
PAGE = noise(200, 200, seed=1)
WITH_IMAGE = [user(image_part(data_url(SHEET)), text_part("What is this?"))]
QUESTIONS = [
    WITH_IMAGE,
    [user("Hello!")],
    [{"role": "system", "content": "Be brief."}, user("Hello!")],
    [
        user(image_part(data_url(PAGE)), text_part("First?")),
        {"role": "assistant", "content": "An answer."},
        user(image_part(data_url(SHEET)), image_part(data_url(PAGE)), text_part("And these?")),
    ],
]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(checkpoint, tmp_path_factory.mktemp("server")) as running:
        yield running
        assert running.end() == 143


def ask(served: Served, messages: list[Any], **settings: Any):
    client = served.client()
    settings = {"model": MODEL, "max_tokens": NUM_TOKENS, **settings}
    return client.chat.completions.create(messages=messages, **settings)


def text_of(served: Served, messages: list[Any], **settings: Any) -> str:
    return ask(served, messages, **settings).choices[0].message.content


def test_answers_are_the_engines(served: Served, checkpoint: Path):
    from nvlm.generate.engine import Engine

    marked = [
        ([{"role": "user", "content": "<image>\nWhat is this?"}], [SHEET]),
        (
            [
                {"role": "user", "content": "<image>\nFirst?"},
                {"role": "assistant", "content": "An answer."},
                {"role": "user", "content": "<image>\n<image>\nAnd these?"},
            ],
            [PAGE, SHEET, PAGE],
        ),
    ]
    with Engine(checkpoint) as engine:
        questions = [engine.prepare(messages, images, NUM_TOKENS) for messages, images in marked]
        engine.load()
        expected = [engine.answer(question, NUM_TOKENS) for question in questions]
    answers = [ask(served, messages) for messages in (QUESTIONS[0], QUESTIONS[3])]
    for answer, own in zip(answers, expected, strict=True):
        (choice,) = answer.choices
        assert choice.message.content == own.text and own.text
        assert choice.finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(own.prompt_ids)
        assert answer.usage.completion_tokens == len(own.answer_ids) == NUM_TOKENS
        assert answer.usage.total_tokens == len(own.prompt_ids) + NUM_TOKENS
        assert (answer.model, answer.object) == (MODEL, "chat.completion")


@pytest.mark.parametrize("messages", QUESTIONS[::3])
def test_a_stream_is_the_same_answer(served: Served, messages: list[Any]):
    whole = ask(served, messages)
    options = {"include_usage": True}
    chunks = list(ask(served, messages, stream=True, stream_options=options))
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(pieces) > NUM_TOKENS / 2, "the text comes piece by piece"
    assert not any(chunk.usage for chunk in ask(served, messages, stream=True))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_models_that_read_images_beside_are_served(fusion: str, tmp_path: Path):
    """An export of NVLM-X or H: several images in a conversation, and none, asked at once."""
    from nvlm.convert import convert_to_hf
    from nvlm.generate.engine import Engine

    checkpoint = make_checkpoint(tmp_path, *SMALL[fusion], "model.connector.init_std=0.1")
    export = convert_to_hf(checkpoint, tmp_path / "export")
    marked = [
        ("<image>\nFirst?", "An answer.", "<image>\n<image>\nAnd these?"),
        ("Hello!",),
    ]
    with Engine(checkpoint) as engine:
        own = [
            engine.prepare(
                [
                    {"role": role, "content": text}
                    for role, text in zip(cycle(["user", "assistant"]), texts, strict=False)
                ],
                images,
                NUM_TOKENS,
            )
            for texts, images in zip(marked, ([PAGE, SHEET, PAGE], []), strict=True)
        ]
        engine.load()
        expected = [engine.answer(question, NUM_TOKENS).text for question in own]
    assert expected[0] and expected[1]
    with serving(export, tmp_path) as served, ThreadPoolExecutor(4) as pool:
        client = served.client()

        def said(messages: list[Any]) -> str:
            answer = client.chat.completions.create(
                model=client.models.list().data[0].id, messages=messages, max_tokens=NUM_TOKENS
            )
            return answer.choices[0].message.content

        assert list(pool.map(said, [QUESTIONS[3], QUESTIONS[1]] * 2)) == expected * 2


def test_together_as_alone(served: Served):
    alone = [text_of(served, messages) for messages in QUESTIONS]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(2 * len(QUESTIONS)) as pool:
        together = list(pool.map(lambda messages: text_of(served, messages), 2 * QUESTIONS))
    assert together == 2 * alone


def test_seeds_and_stop_texts(served: Served, checkpoint: Path):
    drawn = {"temperature": 1.5, "top_p": 0.95, "extra_body": {"top_k": 50}}
    first, again, other = (text_of(served, WITH_IMAGE, seed=s, **drawn) for s in (5, 5, 6))
    assert first == again != other
    assert len({text_of(served, WITH_IMAGE, **drawn) for _ in range(3)}) == 3
    whole = text_of(served, WITH_IMAGE)
    stop = whole[len(whole) // 2 :][:4]
    for stops in (stop, ["never said", stop]):
        (choice,) = ask(served, WITH_IMAGE, stop=stops).choices
        assert choice.message.content == whole[: whole.index(stop)]
        assert choice.finish_reason == "stop"
    pieces = list(ask(served, WITH_IMAGE, stop=stop, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole[: whole.index(stop)]
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_models_and_health(served: Served):
    client = served.client()
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == (MODEL, "nvlm")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist; there is 'tiny-sft'"):
        client.models.retrieve("gpt")
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "settings, error, field, code",
    [
        ({"model": "gpt"}, openai.NotFoundError, "model", "model_not_found"),
        ({"n": 2}, openai.BadRequestError, "n", "unsupported_parameter"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens", None),
        ({"extra_body": {"tpo_k": 1}}, openai.BadRequestError, "tpo_k", "unknown_parameter"),
        (
            {"messages": [user("long " * 5000)]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"messages": [user("x" * 2_000_000)]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"messages": [user(image_part("http://127.0.0.1:1/secret"))]},
            openai.BadRequestError,
            "messages[0].content[0].image_url.url",
            "invalid_image",
        ),
    ],
)
def test_refusals_are_the_clients_own_errors(
    served: Served, settings: dict[str, Any], error: type, field: str, code: str | None
):
    with pytest.raises(error) as caught:
        ask(served, **{"messages": [user("Hi")], **settings})
    body = caught.value.body
    assert (body["param"], body["code"]) == (field, code)
    assert body["type"] == "invalid_request_error"
    assert "Traceback" not in body["message"] and len(body["message"]) < 300


def most_memory(served: Served) -> int:
    """Bytes that the server's process has ever had resident."""
    status = Path(f"/proc/{served.job.pid}/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def test_bombs_take_no_memory(served: Served):
    before = most_memory(served)
    for content, message in (
        (png_bomb(12_000, 12_000), "12000 x 12000 pixels, over .*--max-image-megapixels"),
        (bytes(5_000_000), "a file that starts with 00 00"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            ask(served, [user(image_part(url_of_bytes(content)))])
    assert most_memory(served) < before + 150e6, "the first image alone has 432 MB"


def test_a_stream_that_is_refused_is_an_error(served: Served):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(served, [user("Hi")], stream=True, temperature=5)


@pytest.mark.parametrize(
    "content, headers, status, message",
    [
        (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        (b"garbage", {}, 400, "not JSON"),
        (b"", {}, 400, "not JSON"),
        (b"{}", {}, 400, "model is missing"),
        (b"{}", {"origin": "https://evil.example"}, 403, "https://evil.example"),
        (b"{}", {"host": "evil.example:80"}, 403, "evil.example"),
        (b"{}", {"host": "[::"}, 403, "[::"),
    ],
)
def test_hostile_requests(
    served: Served, content: bytes, headers: dict[str, str], status: int, message: str
):
    url = f"{served.url}/v1/chat/completions"
    headers = {"content-type": "application/json", **headers}
    found = httpx.post(url, content=content, headers=headers)
    assert found.status_code == status
    assert message in found.json()["error"]["message"]
    assert found.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/nothing", "/v1/completions", "/docs", "/openapi.json", "/v1"])
def test_unknown_addresses(served: Served, path: str):
    for method in ("GET", "POST"):
        found = httpx.request(method, served.url + path)
        assert found.status_code == 404
        assert found.json()["error"]["message"] == f"unknown request: {method} {path}"
    assert httpx.get(f"{served.url}/v1/chat/completions").status_code == 405


def test_bytes_that_are_no_request_and_half_a_body(served: Served):
    host, port = served.url.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    for sent in (
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
        head + b"Content-Type: application/json\r\n\r\n{",
        head[:40],
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(sent)
    head = head.replace(b"1000", b"99999999999") + b"Content-Type: application/json\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head)
        answer = connection.makefile("rb").read()  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413 ") and b"--max-request-mb 50" in answer
    assert text_of(served, [user("Hello!")])


def wait_until(happened, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_places_are_given_back(checkpoint: Path, tmp_path: Path):
    """A second request is refused while the first one has the only place; one that goes frees it,
    and so does one that takes too long."""
    options = ("--max-queue", "1", "--timeout-seconds", "2.5", "--max-new-tokens", "100000")
    with serving(checkpoint, tmp_path, *options) as served:
        long = {"max_tokens": None}

        def is_taken() -> bool:
            url = f"{served.url}/v1/chat/completions"
            body = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 1}
            found = httpx.post(url, json=body, timeout=60)
            if found.status_code == 429:
                assert found.headers["retry-after"] == "1" and "--max-queue" in found.text
            return found.status_code == 429

        stream = ask(served, WITH_IMAGE, stream=True, **long)
        next(stream)
        assert is_taken()
        stream.close()
        wait_until(lambda: not is_taken())
        with pytest.raises(openai.APITimeoutError):
            served.client(timeout=0.5).chat.completions.create(
                model=MODEL, messages=WITH_IMAGE, **long
            )
        wait_until(lambda: not is_taken())
        with pytest.raises(openai.InternalServerError, match=r"within 2\.5 seconds") as late:
            ask(served, WITH_IMAGE, **long)
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"within 2\.5 seconds"):
            list(ask(served, WITH_IMAGE, stream=True, **long))
        wait_until(lambda: not is_taken())
        assert text_of(served, [user("Hello!")], max_tokens=1)


def test_a_key_is_asked_for(checkpoint: Path, tmp_path: Path):
    with serving(checkpoint, tmp_path, "--api-key", "secret", "--host", "0.0.0.0") as served:
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")
        for key in ("wrong", "secre", "secret2", "SECRET"):
            with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                served.client(key).models.list()
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.post(f"{served.url}/v1/nothing").status_code == 401
        assert httpx.get(f"{served.url}/health").status_code == 200
        assert served.client("secret").models.list().data[0].id == MODEL
        assert "secret" not in served.log.read_text()
        # A port that is taken is said before a model is loaded.
        port = served.url.rpartition(":")[2]
        again = serving(checkpoint, tmp_path / "..", "--port", port)
        with pytest.raises(AssertionError) as second, again:
            pass
        assert str(second.value).strip().splitlines()[0] == (
            f"error: --port {port}: another program listens there; give another --port"
        )
        end_with_an_open_answer(served, signal.SIGTERM, key="secret")


def end_with_an_open_answer(served: Served, number: signal.Signals, **settings: Any) -> None:
    """The open one gets its end, then the server ends."""
    client = served.client(settings.pop("key", "any"))
    settings = {"model": MODEL, "messages": WITH_IMAGE, "max_tokens": 40, **settings}
    expected = client.chat.completions.create(**settings).choices[0].message.content
    stream = client.chat.completions.create(**settings, stream=True)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(served.end, number)
        text = "".join(piece.choices[0].delta.content or "" for piece in stream)
        assert (text, ended.result()) == (expected, 128 + number)
    lines = served.log.read_text().splitlines()
    assert lines[-1] == ("interrupted" if number == signal.SIGINT else "stopped by SIGTERM")
    assert "Traceback" not in served.log.read_text()


def test_an_export_is_served_as_its_checkpoint(served: Served, checkpoint: Path, tmp_path: Path):
    export = tmp_path / "exported"
    spawn.run_or_fail(
        1, "convert", "to-hf", str(checkpoint), str(export), log=tmp_path / "convert.log"
    )
    with serving(export, tmp_path) as other:
        assert other.client().models.list().data[0].id == "exported"
        assert text_of(other, QUESTIONS[3], model="exported") == text_of(served, QUESTIONS[3])
        end_with_an_open_answer(other, signal.SIGINT, model="exported")


def test_what_is_said_at_the_start(served: Served, checkpoint: Path):
    printed = served.log.read_text().splitlines()
    facts = dict(line.split(maxsplit=1) for line in printed if line[:1].isalpha())
    assert facts["model"] == f"{MODEL}: {checkpoint}"
    assert facts["layout"] == "tensor 1 x pipeline 1: 1 process"
    assert facts["address"] == f"{served.url}/v1 (OpenAI's API), {served.url}/ (a page to chat)"
    assert "64 requests at once" in facts["limits"] and "100 megapixels" in facts["limits"]
    assert json.loads(httpx.get(f"{served.url}/v1/models").text)["data"][0]["limits"]
