"""ScienceQA: parquet files, with questions that have no image, and the official folder."""

from __future__ import annotations

import pytest
from helpers.published_files import (
    kept,
    picture,
    pictures_of,
    problem_of,
    read_all,
    write_json,
    write_parquet,
    write_pictures,
)

from nvlm.evaluate.benchmarks.scienceqa import SCIENCEQA

ROWS = [
    {"question": "Which is farther north?", "choices": ["Ohio", "Maine"], "answer": 1, "hint": "",
     "subject": "social science"},
    {"question": "What is it?", "choices": ["a solid", "a gas", "a liquid"], "answer": 0,
     "hint": "Look at the picture.", "subject": "natural science"},
]  # fmt: skip


def write_official(folder):
    problems = {
        "7": {**ROWS[0], "image": None, "split": "test"},
        "12": {**ROWS[1], "image": "image.png", "split": "test"},
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": ["7", "12"], "train": []})
    write_pictures(folder / "images/test/12", ["image.png"])


def write_hub(folder):
    rows = [{**row, "image": picture} for row, picture in zip(ROWS, (None, 0), strict=True)]
    write_parquet(folder / "ScienceQA-FULL/test-00000-of-00001.parquet", rows)
    write_parquet(folder / "ScienceQA-IMG/test-00000-of-00001.parquet", rows[1:])


@pytest.mark.parametrize("write", [write_hub, write_official])
def test_items_and_prompts(write, tmp_path):
    write(tmp_path)
    items = read_all(SCIENCEQA, tmp_path)
    assert [pictures_of(item) for item in items] == [[], [picture(0)]]
    letter = "Answer with the option's letter from the given choices directly."
    assert [SCIENCEQA.prompt(item) for item in items] == [
        f"Which is farther north?\nA. Ohio\nB. Maine\n{letter}",
        "<image>\nContext: Look at the picture.\nWhat is it?\n"
        f"A. a solid\nB. a gas\nC. a liquid\n{letter}",
    ]
    assert [SCIENCEQA.score(item, "B") for item in items] == [1, 0]
    assert SCIENCEQA.answer is not None
    assert [SCIENCEQA.answer(item) for item in items] == ["B", "A"]


def test_parts_of_the_score(tmp_path):
    write_hub(tmp_path)
    assert SCIENCEQA.summarise is not None
    summary = SCIENCEQA.summarise(list(map(kept, read_all(SCIENCEQA, tmp_path))), ["", ""], [1, 0])
    assert summary.score == 50
    assert summary.parts == {
        "with an image": 0, "without": 100, "natural science": 0, "social science": 100,
    }  # fmt: skip


def test_damage(tmp_path):
    path = write_parquet(tmp_path / "test-0.parquet", [{**ROWS[0], "answer": 2, "image": None}])
    said = problem_of(SCIENCEQA, tmp_path)
    assert said == f"{path} row 0: `answer` is 2, which is none of 2 choices"
    path.unlink()
    write_official(tmp_path)
    (tmp_path / "images/test/12/image.png").unlink()
    said = problem_of(SCIENCEQA, tmp_path)
    assert said.startswith(f"{tmp_path}/problems.json 12: the image 12/image.png is missing")
    write_json(tmp_path / "pid_splits.json", {"test": ["7", "13"]})
    assert problem_of(SCIENCEQA, tmp_path) == (
        f"{tmp_path}/problems.json: no object '13', which {tmp_path}/pid_splits.json names"
    )
    write_json(tmp_path / "pid_splits.json", {"val": []})
    assert problem_of(SCIENCEQA, tmp_path) == f"{tmp_path}/pid_splits.json: no list `test` in it"
