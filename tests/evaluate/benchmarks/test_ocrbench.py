"""OCRBench: echo840's parquet file and the official JSON."""

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

from nvlm.evaluate.benchmarks.ocrbench import OCRBENCH

FORMULAS = "Handwritten Mathematical Expression Recognition"
ROWS = [
    ("IIIT5K", "what is written in the image?", "Regular Text Recognition", ["CENTRE"]),
    ("docVQA", "What is the date?", "Doc-oriented VQA", ["1/8/93", "Jan 8"]),
    ("HME100k", "Please write out the formula.", FORMULAS, ["x ^ { 2 }"]),
    ("svt", "what is written in the image?", "Irregular Text Recognition", ["Bar"]),
]


def write_hub(folder):
    rows = [
        {
            "dataset": name,
            "question": question,
            "question_type": kind,
            "answer": answers,
            "image": n,
        }
        for n, (name, question, kind, answers) in enumerate(ROWS)
    ]
    return write_parquet(folder / "data/test-00000-of-00001.parquet", rows)


def write_official(folder):
    rows = [
        {"dataset_name": name, "image_path": f"{name}/{n}.png", "question": question, "type": kind,
         "answers": answers if len(answers) > 1 else answers[0], "id": n}
        for n, (name, question, kind, answers) in enumerate(ROWS)
    ]  # fmt: skip
    write_json(folder / "OCRBench/OCRBench.json", rows)
    write_pictures(folder / "OCRBench_Images", [row["image_path"] for row in rows])


@pytest.mark.parametrize("write", [write_hub, write_official])
def test_items_and_prompts(write, tmp_path):
    write(tmp_path)
    items = read_all(OCRBENCH, tmp_path)
    assert [pictures_of(item) for item in items] == [[picture(n)] for n in range(4)]
    assert OCRBENCH.prompt(items[1]) == "<image>\nWhat is the date?"
    assert [item.truth["is_formula"] for item in items] == [False, False, True, False]
    assert [OCRBENCH.score(item, "x^{2} centre jan 8") for item in items] == [1, 1, 1, 0]
    assert OCRBENCH.score(items[2], "X^{2}") == 0


def test_points(tmp_path):
    write_hub(tmp_path)
    items = read_all(OCRBENCH, tmp_path)
    assert OCRBENCH.summarise is not None
    summary = OCRBENCH.summarise(list(map(kept, items)), [""] * 4, [1, 0, 1, 0])
    assert summary.score == 500
    assert summary.parts == {"Text Recognition": 150, "Doc-oriented VQA": 0, FORMULAS: 100}


def test_points_of_all_questions():
    """1,000 questions, as many in each category as it has points: then points are counted."""
    from nvlm.evaluate.benchmarks.entry import Item

    kinds = {
        "Digit String Recognition": 300, "Scene Text-centric VQA": 200, "Doc-oriented VQA": 200,
        "Key Information Extraction": 200, FORMULAS: 100,
    }  # fmt: skip
    items = [Item(f"{n}", "?", [], {}, group=kind) for kind, n in kinds.items() for _ in range(n)]
    scores = [float(number % 3 == 0) for number in range(1000)]
    assert OCRBENCH.summarise is not None
    summary = OCRBENCH.summarise(items, [""] * 1000, scores)
    assert summary.score == pytest.approx(sum(scores))
    assert sum(summary.parts.values()) == pytest.approx(sum(scores))
    assert summary.parts["Doc-oriented VQA"] == pytest.approx(sum(scores[500:700]))


def test_damage(tmp_path):
    row = {
        "dataset": "svt",
        "question": "?",
        "question_type": "Poetry",
        "answer": ["a"],
        "image": 0,
    }
    path = write_parquet(tmp_path / "test-0.parquet", [row])
    said = problem_of(OCRBENCH, tmp_path)
    assert said == f"{path} row 0: `question_type` is Poetry, which is no kind of OCRBench's"
    write_parquet(path, [{**row, "question_type": "Doc-oriented VQA", "answer": None}])
    assert problem_of(OCRBENCH, tmp_path).startswith(f"{path} row 0: no `answer`; there is")
