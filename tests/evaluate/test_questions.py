"""Questions are read back as webdataset wrote the samples, in a fixed order; nothing is lost."""

import io
import json
import zlib

import pytest
import webdataset
from PIL import Image

from nvlm.config import load_config
from nvlm.errors import DataError
from nvlm.evaluate.question_files import read_image_files, write_questions
from nvlm.evaluate.questions import HeldOut, choose_questions, with_data
from nvlm.evaluate.questions import read_questions as read_all

CONFIG = load_config("configs/run/tiny/sft.yaml")


def read_questions(root, limit_per_task=None, split="heldout") -> HeldOut:
    return choose_questions(read_all(with_data(CONFIG, root, split)), limit_per_task)


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
    questions = read_questions(root).questions
    assert [q.sample_id for q in questions] == [f"digit-{n:03d}" for n in range(11)] + [
        "many",
        "chat",
    ]
    many, chat = questions[-2:]
    # Twelve images: 10 and 11 come after 9, not after 1.
    assert read_image_files(many, 100) == [_png(100 + n) for n in range(12)]
    assert many.text == "Question of many?"
    assert (chat.source, chat.task, chat.truth.answers) == ("mixed", "text", ["Eight."])
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user"]


def test_limit_is_per_task_and_always_takes_the_same(root):
    questions = read_questions(root, 4).questions
    digits = [q.truth.answers[0] for q in questions if q.task == "digit"]
    # The lowest of zlib.crc32(b"digit-000") ... zlib.crc32(b"digit-010"), in order of position.
    assert digits == ["2", "3", "6", "7"]
    assert len(questions) == 6
    fewer = [q.truth.answers[0] for q in read_questions(root, 3).questions if q.task == "digit"]
    assert set(fewer) < set(digits)


def test_written_folder_holds_the_same(root, tmp_path):
    questions = read_questions(root).questions
    folder = write_questions(questions, tmp_path / "questions", 100)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for question, line in zip(questions, lines, strict=True):
        assert line["messages"] == question.messages
        assert (line["sample_id"], line["truth"]) == (question.sample_id, question.truth.answers)
        assert [(folder / name).read_bytes() for name in line["images"]] == read_image_files(
            question, 100
        )
    # Writing again replaces the folder as a whole.
    write_questions(questions[:1], folder, 100)
    assert len(list((folder / "images").iterdir())) == 1


def test_bad_samples_are_named_and_counted(tmp_path):
    folder = tmp_path / "heldout" / "mixed"
    good = _sample("good", "digit", "1", [_png(1)])
    _write(folder / "a-000000.tar", [
        good,
        _sample("more", "digit", "1", [_png(1)]) | {"1.png": _png(2)},
        _sample("large", "digit", "1", [_header_of(20_000, 20_000)]),
        {"__key__": "page", "json": {"text": "A document.", "task": "digit"}},
    ])  # fmt: skip
    (folder / "b-000000.tar").write_bytes(b"not a tar file" * 100)
    found = read_questions(tmp_path)
    assert [q.sample_id for q in found.questions] == ["good"]
    reasons = {"image_count": 1, "image_too_large": 1, "shard": 1, "no_question": 1}
    assert found.counts["mixed"].left_out == reasons
    assert (found.counts["mixed"].num_samples, found.counts["mixed"].num_chosen) == (5, 1)
    named = {(s.shard, s.key): s.reason for s in found.left_out}
    assert named == {
        ("a-000000.tar", "more"): "image_count",
        ("a-000000.tar", "large"): "image_too_large",
        ("b-000000.tar", ""): "shard",
    }


def _header_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""
    data = bytearray(_png(1))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_nothing_to_ask_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no \.tar files there or one folder below; .* has train"):
        read_questions(tmp_path)
    _write(tmp_path / "heldout/x-000000.tar", [{"__key__": "c", "json": {"text": "A page."}}])
    with pytest.raises(
        DataError, match=r"nothing to ask: 1 samples, left out as no_question 1; doc"
    ):
        read_questions(tmp_path)
    _write(tmp_path / "heldout/x-000000.tar", [_sample("a", "digit", "1") | {"0.png": _png(2)}])
    with pytest.raises(
        DataError, match=r"nothing to ask: .*image_count 1; the first is x-000000.tar"
    ):
        read_questions(tmp_path)


def test_no_folder_is_passed_over(root, tmp_path):
    """Compressed shards are named; what the run's blend has elsewhere is none of this split."""
    trained = tmp_path / "elsewhere"
    (trained / ".nv-meta").mkdir(parents=True)
    (trained / ".nv-meta" / "split.yaml").write_text("split_parts: {train: []}")
    blend = {"digits": 1, "elsewhere": {"path": str(trained)}, "gone": {"path": "not/there"}}
    config = load_config("configs/run/tiny/sft.yaml", [f"data.blend={json.dumps(blend)}"])
    assert read_all(with_data(config, root, "heldout")).counts.keys() == {"digits", "mixed"}
    (root / "heldout" / "packed").mkdir()
    (root / "heldout" / "packed" / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"packed has compressed shards such as a\.tar\.gz"):
        read_questions(root)


@pytest.mark.parametrize("split", ["", ".", "..", "../train", "a/b", "/data", "a\0b"])
def test_a_split_is_a_name(tmp_path, split):
    with pytest.raises(DataError, match="--split"):
        read_questions(tmp_path, split=split)


def test_without_a_task_the_source_is_the_task(tmp_path):
    samples = [_sample(name, "digit", "1") for name in ("a", "b", "c")]
    del samples[0]["json"]["task"]
    samples[2]["json"]["task"] = " "
    _write(tmp_path / "heldout/pictures/x-000000.tar", samples)
    found = read_questions(tmp_path)
    assert [q.task for q in found.questions] == ["pictures", "digit", "pictures"]
    assert found.counts["pictures"].num_without_task == 2


def _vqa(key: str, answers: list[str], **fields) -> dict:
    value = {"question": "How many?", "answers": answers, "task": "vqa"} | fields
    return {"__key__": key, "json": value}


def test_how_answers_count_follows_from_the_data(tmp_path):
    people = ["2"] * 5 + ["3"] * 5
    spellings = [f"spelling {number}" for number in range(10)]
    sources = {
        "people": [_vqa("a", people), _vqa("b", ["2", "two"], answer_weights=[9, 1])],
        "spellings": [_vqa("a", spellings)],
        "some": [_vqa("a", people), _vqa("b", ["11", "eleven", "xi"])],
        "weighted": [_vqa("a", ["2", "two"], answer_weights=[9.5, 0.5])],
    }
    for name, samples in sources.items():
        _write(tmp_path / "heldout" / name / "x-000000.tar", samples)
    truths = {(q.source, q.sample_id): q.truth for q in read_questions(tmp_path).questions}
    assert (truths["people", "a"].answers, truths["people", "a"].counts) == (["2", "3"], [5, 5])
    assert truths["people", "b"].counts == [9, 1]
    assert truths["people", "b"].metric == "vqa_accuracy"
    others = {truth.metric for (source, _), truth in truths.items() if source != "people"}
    assert others == {"exact_match"}
    assert truths["some", "b"].answers == ["11", "eleven", "xi"]
    assert truths["spellings", "a"].answers == spellings
