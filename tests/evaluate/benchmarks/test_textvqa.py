"""TextVQA: as lmms-lab's parquet files and as the official JSON."""

from __future__ import annotations

import pytest
from helpers.published_files import (
    picture,
    pictures_of,
    problem_of,
    read_all,
    write_json,
    write_parquet,
    write_pictures,
)

from nvlm.evaluate.benchmarks.textvqa import TEXTVQA

PEOPLE = ["stop"] * 4 + ["STOP!"] * 2 + ["a stop sign"] * 4
ROWS = [
    {"image_id": "a0", "question_id": 34602, "question": "what does it say?", "answers": PEOPLE,
     "ocr_tokens": ["STOP"]},
    {"image_id": "b1", "question_id": 34603, "question": "What year?", "answers": ["1998"] * 10,
     "ocr_tokens": []},
    {"image_id": "a0", "question_id": 34604, "question": "who?", "answers": ["nobody"] * 10,
     "ocr_tokens": []},
]  # fmt: skip


@pytest.fixture(params=["parquet", "json"])
def folder(request, tmp_path):
    if request.param == "parquet":
        pictures = [0, 1, 0]
        rows = [{**row, "image": n} for row, n in zip(ROWS, pictures, strict=True)]
        write_parquet(tmp_path / "data/validation-00000-of-00002-ab.parquet", rows[:2])
        write_parquet(tmp_path / "data/validation-00001-of-00002-cd.parquet", rows[2:])
    else:
        write_json(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": ROWS})
        write_pictures(tmp_path / "train_images", ["a0.jpg", "b1.jpg"])
    return tmp_path


def test_items(folder):
    items = read_all(TEXTVQA, folder)
    assert [item.key for item in items] == ["34602", "34603", "34604"]
    assert [pictures_of(item) for item in items] == [[picture(0)], [picture(1)], [picture(0)]]
    assert items[0].truth == {"answers": PEOPLE}


def test_prompt_and_score(folder):
    item = read_all(TEXTVQA, folder)[0]
    assert TEXTVQA.prompt(item) == (
        "<image>\nwhat does it say?\nAnswer the question using a single word or phrase."
    )
    assert TEXTVQA.score(item, "Stop.") == 1
    assert TEXTVQA.score(item, "go") == 0
    assert TEXTVQA.answer is not None
    assert TEXTVQA.answer(item) == "stop"


def test_examples_are_of_train(tmp_path):
    write_json(tmp_path / "TextVQA_0.5.1_train.json", {"data": ROWS[:1]})
    write_pictures(tmp_path / "train_images", ["a0.jpg"])
    assert TEXTVQA.train_split is not None
    assert [item.key for item in read_all(TEXTVQA, tmp_path, TEXTVQA.train_split)] == ["34602"]
    said = problem_of(TEXTVQA, tmp_path)
    assert str(tmp_path) in said and "TextVQA_0.5.1_val.json" in said and "validation-" in said


def test_damaged_json(tmp_path):
    path = write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": ROWS})
    assert problem_of(TEXTVQA, tmp_path).startswith(f"{path} data[0]: the image a0.jpg is missing")
    write_pictures(tmp_path / "train_images", ["a0.jpg", "b1.jpg"])
    write_json(path, {"data": [ROWS[0], {**ROWS[1], "answers": "1998"}]})
    said = problem_of(TEXTVQA, tmp_path)
    assert said == f"{path} data[1]: `answers` is '1998', expected a list of texts"
    write_json(path, {"data": [{k: v for k, v in ROWS[0].items() if k != "question"}]})
    assert problem_of(TEXTVQA, tmp_path).startswith(f"{path} data[0]: no `question`; there is ")
    path.write_text('{"data": [')
    assert problem_of(TEXTVQA, tmp_path).startswith(f"{path}: not readable as JSON")


def test_damaged_parquet(tmp_path):
    path = tmp_path / "validation-0.parquet"
    write_parquet(path, [{"question_id": 1, "question": "?", "image": 0}])
    said = problem_of(TEXTVQA, tmp_path)
    assert said == f"{path}: no column `answers`; there is question_id, question, image"
    rows = [{**row, "image": None} for row in ROWS]
    rows[1] = {**rows[1], "question": " "}
    write_parquet(path, rows)
    said = problem_of(TEXTVQA, tmp_path)
    assert said == f"{path} row 1: `question` is ' ', expected a text"
    path.write_bytes(path.read_bytes()[:100])
    assert problem_of(TEXTVQA, tmp_path).startswith(f"{path}: not readable as parquet")


def test_images_are_read_when_their_turn_comes(tmp_path):
    rows = [{**row, "image": None if n else 5} for n, row in enumerate(ROWS)]
    path = write_parquet(tmp_path / "validation-0.parquet", rows)
    items = read_all(TEXTVQA, tmp_path)
    assert pictures_of(items[0]) == [picture(5)]
    with pytest.raises(ValueError, match=f"{path} row 1: `image` holds no bytes"):
        pictures_of(items[1])
