"""Questions are read back exactly as webdataset wrote the samples, in a fixed order."""

import io
import json

import pytest
import webdataset
from PIL import Image

from nvlm.errors import DataError
from nvlm.evaluate.heldout import read_questions, write_questions


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


def _sample(key: str, task: str, truth: str, images=(), turns=()) -> dict:
    content = "<image>\n" * len(images) + f"Question of {key}?"
    messages = [*turns, {"role": "user", "content": content}]
    messages.append({"role": "assistant", "content": truth})
    sample = {"__key__": key, "json": {"messages": messages, "task": task}}
    return sample | {f"{number}.png": data for number, data in enumerate(images)}


def _write(path, samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


@pytest.fixture
def root(tmp_path):
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
    ]
    digits = [_sample(f"digit-{n:03d}", "digit", str(n), [_png(n)]) for n in range(11)]
    _write(tmp_path / "heldout/digits/digits-000000.tar", digits[:6])
    _write(tmp_path / "heldout/digits/digits-000001.tar", digits[6:])
    many = _sample("many", "multi", "2", [_png(100 + n) for n in range(12)])
    text = _sample("chat", "text", "Eight.", turns=earlier)
    _write(tmp_path / "heldout/mixed/mixed-000000.tar", [many, text])
    return tmp_path


def test_questions_as_written(root):
    questions = read_questions(root, "heldout", None)
    assert [q.sample_id for q in questions] == [f"digit-{n:03d}" for n in range(11)] + [
        "many",
        "chat",
    ]
    many, chat = questions[-2:]
    # Twelve images: 10 and 11 come after 9, not after 1.
    assert many.images == [_png(100 + n) for n in range(12)]
    assert many.text == "Question of many?"
    assert (chat.source, chat.task, chat.truth) == ("mixed", "text", "Eight.")
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user"]


def test_limit_is_per_task_and_always_takes_the_same(root):
    questions = read_questions(root, "heldout", 4)
    digits = [q.truth for q in questions if q.task == "digit"]
    # The lowest of zlib.crc32(b"digit-000") ... zlib.crc32(b"digit-010"), in order of position.
    assert digits == ["2", "3", "6", "7"]
    assert len(questions) == 6
    fewer = [q.truth for q in read_questions(root, "heldout", 3) if q.task == "digit"]
    assert set(fewer) < set(digits)


def test_written_folder_holds_the_same(root, tmp_path):
    questions = read_questions(root, "heldout", None)
    folder = write_questions(questions, tmp_path / "questions")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for question, line in zip(questions, lines, strict=True):
        assert line["messages"] == question.messages
        assert (line["sample_id"], line["truth"]) == (question.sample_id, question.truth)
        assert [(folder / name).read_bytes() for name in line["images"]] == question.images
    # Writing again replaces the folder as a whole.
    write_questions(questions[:1], folder)
    assert len(list((folder / "images").iterdir())) == 1


def test_bad_shards_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar files"):
        read_questions(tmp_path, "heldout", None)
    shard = tmp_path / "heldout/x-000000.tar"
    shard.parent.mkdir()
    shard.write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match=r"x-000000\.tar: "):
        read_questions(tmp_path, "heldout", None)
    _write(shard, [_sample("a", "digit", "1", [_png(1)]) | {"1.png": _png(2)}])
    with pytest.raises(DataError, match="sample a: 1 <image> marks in user turns for 2 images"):
        read_questions(tmp_path, "heldout", None)
    sample = _sample("b", "digit", "1")
    del sample["json"]["task"]
    _write(shard, [sample])
    with pytest.raises(DataError, match="sample b: evaluation needs a task"):
        read_questions(tmp_path, "heldout", None)
    _write(shard, [{"__key__": "c", "json": {"text": "A document.", "task": "digit"}}])
    with pytest.raises(DataError, match="sample c: evaluation needs a user turn and an assistant"):
        read_questions(tmp_path, "heldout", None)
