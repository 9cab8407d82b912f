"""DocVQA and InfographicVQA: lmms-lab's repository, which has both, and the official files."""

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

from nvlm.evaluate.benchmarks.documents import DOCVQA, INFOVQA

ROWS = [
    {"questionId": 337, "question": "what is the date?", "answers": ["1/8/93", "Jan 8, 1993"]},
    {"questionId": 338, "question": "Who is it to?", "answers": ["Mr. Smith"]},
]
CONFIGS = ("DocVQA", "InfographicVQA")
BENCHMARKS = [DOCVQA, INFOVQA]


def write_lmms(folder, has_answers=True, name="validation", configs=CONFIGS):
    for first, config in enumerate(configs):
        rows = [
            {**row, "questionId": str(row["questionId"]), "image": 10 * first + n}
            | ({} if has_answers else {"answers": None})
            for n, row in enumerate(ROWS)
        ]
        path = write_parquet(folder / config / f"{name}-00000-of-00001.parquet", rows)
    return path


@pytest.mark.parametrize("first, benchmark", list(enumerate(BENCHMARKS)))
def test_one_repository_has_both(first, benchmark, tmp_path):
    write_lmms(tmp_path)
    items = read_all(benchmark, tmp_path)
    assert [item.key for item in items] == ["337", "338"]
    assert [pictures_of(item) for item in items] == [[picture(10 * first + n)] for n in (0, 1)]
    assert items[0].truth == {"answers": ["1/8/93", "Jan 8, 1993"]}
    assert benchmark.prompt(items[0]) == (
        "<image>\nwhat is the date?\nAnswer the question using a single word, phrase, or number."
    )
    assert benchmark.score(items[0], "jan 8 1993") == pytest.approx(1 - 1 / 11)
    assert benchmark.answer is not None
    assert benchmark.answer(items[0]) == "1/8/93"


def test_files_without_a_folder(tmp_path):
    write_parquet(tmp_path / "data/validation-0.parquet", [{**ROWS[0], "image": 0}])
    assert [item.key for item in read_all(DOCVQA, tmp_path)] == ["337"]


def test_official_docvqa(tmp_path):
    rows = [{**row, "image": f"documents/{n}.png"} for n, row in enumerate(ROWS)]
    write_json(tmp_path / "val/val_v1.0.json", {"dataset_name": "docvqa", "data": rows})
    write_pictures(tmp_path / "val/documents", ["0.png", "1.png"])
    items = read_all(DOCVQA, tmp_path)
    assert [pictures_of(item) for item in items] == [[picture(0)], [picture(1)]]


def test_official_docvqa_in_folders_of_the_competition(tmp_path):
    rows = [{**row, "image": f"documents/{n}.png"} for n, row in enumerate(ROWS)]
    write_json(tmp_path / "spdocvqa_qas/val_v1.0_withQT.json", {"data": rows})
    write_json(tmp_path / "spdocvqa_qas/train_v1.0_withQT.json", {"data": rows[:1]})
    names = ["0.png", "1.png"]  # without the folder that the questions name
    write_pictures(tmp_path / "spdocvqa_images", names)
    items = read_all(DOCVQA, tmp_path)
    assert [pictures_of(item) for item in items] == [[picture(0)], [picture(1)]]
    assert len(read_all(DOCVQA, tmp_path, "train")) == 1
    (tmp_path / "spdocvqa_images" / names[1]).unlink()
    said = problem_of(DOCVQA, tmp_path)
    assert "val_v1.0_withQT.json data[1]: the image documents/1.png is missing" in said


def test_official_infographics(tmp_path):
    rows = [{**row, "image_local_name": f"{n}.jpeg"} for n, row in enumerate(ROWS)]
    write_json(tmp_path / "infographicsVQA_val_v1.0_withQT.json", {"data": rows})
    write_pictures(tmp_path / "infographicsvqa_images", ["0.jpeg", "1.jpeg"])
    items = read_all(INFOVQA, tmp_path)
    assert [pictures_of(item) for item in items] == [[picture(0)], [picture(1)]]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_test_split_has_no_score(benchmark, tmp_path):
    write_lmms(tmp_path, has_answers=False, name="test")
    items = read_all(benchmark, tmp_path, "test")
    assert [dict(item.truth) for item in items] == [{}, {}]
    assert "test" in benchmark.unscored_splits
    assert benchmark.submission is not None
    assert benchmark.submission(list(map(kept, items)), ["1/8/93\n", ""]) == [
        {"questionId": 337, "answer": "1/8/93"},
        {"questionId": 338, "answer": ""},
    ]


def test_damage(tmp_path):
    path = write_lmms(tmp_path, has_answers=False, configs=["DocVQA"])
    assert problem_of(DOCVQA, tmp_path).startswith(f"{path} row 0: no `answers`; there is")
    write_parquet(path, [{**ROWS[0], "questionId": "q1", "image": 0}])
    assert problem_of(DOCVQA, tmp_path) == (
        f"{path} row 0: `questionId` is 'q1', expected a number"
    )
    path.unlink()
    assert "val_v1.0*.json" in problem_of(DOCVQA, tmp_path)
