"""MathVista's testmini as AI4Math publishes it."""

from __future__ import annotations

import pytest
from helpers.published_files import kept, picture, pictures_of, problem_of, read_all, write_parquet

from nvlm.evaluate.benchmarks.mathvista import MATHVISTA

METADATA = {"split": "testmini", "task": "figure question answering", "skills": ["arithmetic"]}
ROWS = [
    {"pid": "1", "question": "How long is it?", "image": "images/1.jpg", "decoded_image": 1,
     "choices": None, "unit": "cm", "precision": 1.0, "answer": "1.2", "question_type": "free_form",
     "answer_type": "float", "metadata": METADATA,
     "query": "Hint: Give the final value, e.g., 1.2, at the end.\nQuestion: How long is it? "
              "(Unit: cm)"},
    {"pid": "2", "question": "Which angle?", "image": "images/2.jpg", "decoded_image": 2,
     "choices": ["135°", "140°"], "unit": None, "precision": None, "answer": "140°",
     "question_type": "multi_choice", "answer_type": "text",
     "metadata": {"split": "testmini", "task": "geometry problem solving",
                  "skills": ["algebra", "geometry"]},
     "query": "Hint: Give the letter at the end.\nQuestion: Which angle?\nChoices:\n(A) 135°\n"
              "(B) 140°"},
]  # fmt: skip


def write(folder, rows=ROWS):
    path = folder / "data/testmini-00000-of-00001-725687bf7a18d64b.parquet"
    return write_parquet(path, rows, image_columns=["decoded_image"])


def test_items_and_prompts(tmp_path):
    write(tmp_path)
    items = read_all(MATHVISTA, tmp_path)
    assert [pictures_of(item) for item in items] == [[picture(1)], [picture(2)]]
    assert [MATHVISTA.prompt(item) for item in items] == [
        "<image>\nGive the final value, e.g., 1.2, at the end.\nQuestion: How long is it? "
        "(Unit: cm)",
        "<image>\nWhich angle?\nA. 135°\nB. 140°\n"
        "Answer with the option's letter from the given choices directly.",
    ]
    assert [MATHVISTA.score(items[0], text) for text in ("1.2", "It is 1.24 cm.", "1.3")] == [
        1,
        1,
        0,
    ]
    assert [MATHVISTA.score(items[1], text) for text in ("B", "140°", "(A)", "")] == [1, 1, 0, 0]


def test_parts_of_the_score(tmp_path):
    write(tmp_path)
    assert MATHVISTA.summarise is not None
    summary = MATHVISTA.summarise(list(map(kept, read_all(MATHVISTA, tmp_path))), ["", ""], [1, 0])
    assert summary.score == 50
    assert summary.parts == {
        "figure question answering": 100, "arithmetic": 100,
        "geometry problem solving": 0, "algebra": 0, "geometry": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, change, said",
    [
        (0, {"answer": "long"}, "`answer` is 'long', expected a number"),
        (0, {"answer": ""}, "`answer` is '', expected a text"),
        (0, {"answer_type": "vector"}, "`answer_type` is vector, expected integer, float"),
        (1, {"answer": "150°"}, "`answer` is '150°', which is none of `choices`"),
        (1, {"choices": None}, "no `choices`; there is"),
        (1, {"metadata": None}, "no `metadata`; there is"),
    ],
)
def test_damaged_rows(row, change, said, tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[row] |= change
    path = write(tmp_path, rows)
    assert problem_of(MATHVISTA, tmp_path).startswith(f"{path} row {row}: {said}")


def test_missing_columns(tmp_path):
    path = write(tmp_path, [{k: v for k, v in row.items() if k != "query"} for row in ROWS])
    assert problem_of(MATHVISTA, tmp_path).startswith(f"{path}: no column `query`; there is pid")
