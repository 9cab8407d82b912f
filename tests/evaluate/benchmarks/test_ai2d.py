"""AI2D: lmms-lab's parquet files and VLMEvalKit's TSV."""

from __future__ import annotations

import pytest
from helpers.published_files import (
    picture,
    pictures_of,
    problem_of,
    read_all,
    write_parquet,
    write_tsv,
)

from nvlm.evaluate.benchmarks.ai2d import AI2D, AI2D_NO_MASK

ROWS = [
    {"question": "Which is the leaf?", "options": ["D", "C", "B", "A"], "answer": "2"},
    {"question": "What eats grass?", "options": ["rabbit", "fox", "owl", "frog"], "answer": "0"},
]
TSV = [
    {"index": "0", "image": 3, "question": "Which is the leaf?", "A": "D", "B": "C", "C": "B",
     "D": "A", "answer": "C"},
    {"index": "1", "image": "0", "question": "What eats grass?", "A": "rabbit", "B": "fox",
     "C": "owl", "D": "", "answer": "A"},
]  # fmt: skip


@pytest.mark.parametrize("benchmark", [AI2D, AI2D_NO_MASK])
def test_parquet(benchmark, tmp_path):
    rows = [{**row, "image": n} for n, row in enumerate(ROWS)]
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", rows)
    items = read_all(benchmark, tmp_path)
    assert [item.key for item in items] == ["0000", "0001"]
    assert [pictures_of(item) for item in items] == [[picture(0)], [picture(1)]]
    assert benchmark.prompt(items[1]) == (
        "<image>\nWhat eats grass?\nA. rabbit\nB. fox\nC. owl\nD. frog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [benchmark.score(item, "C") for item in items] == [1, 0]
    assert [benchmark.score(item, "A") for item in items] == [0, 1]
    assert benchmark.score(items[1], "A. rabbit") == 1


@pytest.mark.parametrize(
    "benchmark, name", [(AI2D, "AI2D_TEST.tsv"), (AI2D_NO_MASK, "AI2D_TEST_NO_MASK.tsv")]
)
def test_tsv(benchmark, name, tmp_path):
    path = write_tsv(tmp_path / name, TSV)
    items = read_all(benchmark, tmp_path)
    assert [item.key for item in items] == ["0", "1"]
    assert [pictures_of(item) for item in items] == [[picture(3)], [picture(3)]]
    assert [list(item.options) for item in items] == [
        ["D", "C", "B", "A"],
        ["rabbit", "fox", "owl"],
    ]
    assert [item.truth["letter"] for item in items] == ["C", "A"]
    write_tsv(path, [{**TSV[0], "image": "7"}])
    said = problem_of(benchmark, tmp_path)
    assert said == f"{path} row 1: its image is that of index '7', which no row before has"


def test_the_other_setting_is_not_read(tmp_path):
    write_tsv(tmp_path / "AI2D_TEST.tsv", TSV)
    assert "AI2D_TEST_NO_MASK.tsv" in problem_of(AI2D_NO_MASK, tmp_path)


@pytest.mark.parametrize("answer", ["4", "-1", "E", "AB", "rabbit"])
def test_an_answer_that_is_no_option(answer, tmp_path):
    row = {**ROWS[1], "answer": answer, "image": 0}
    path = write_parquet(tmp_path / "test-0.parquet", [row])
    assert problem_of(AI2D, tmp_path) == (
        f"{path} row 0: `answer` is {answer!r}, which is none of 4 options"
    )


def test_missing_columns(tmp_path):
    path = write_parquet(tmp_path / "test-0.parquet", [{"question": "?", "image": 0}])
    assert problem_of(AI2D, tmp_path) == f"{path}: no column `options`; there is question, image"
