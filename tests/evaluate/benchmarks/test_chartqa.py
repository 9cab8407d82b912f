"""ChartQA: in three published forms."""

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

from nvlm.evaluate.benchmarks.chartqa import CHARTQA

QUESTIONS = [
    ("human", "What is the value of the blue bar?", "14"),
    ("human", "Is it higher than the red one?", "Yes"),
    ("augmented", "How much was it in 2019?", "12.5"),
]


def write_m4(folder, rows=QUESTIONS):
    table = [
        {"image": n, "query": question, "label": [label], "human_or_machine": int(group != "human")}
        for n, (group, question, label) in enumerate(rows)
    ]
    return write_parquet(folder / "data/test-00000-of-00001-e2cd0b7a0f9eb20d.parquet", table)


def write_lmms(folder, rows=QUESTIONS):
    table = [
        {"type": f"{group}_test", "question": question, "answer": label, "image": n}
        for n, (group, question, label) in enumerate(rows)
    ]
    return write_parquet(folder / "data/test-00000-of-00001.parquet", table)


def write_official(folder, rows=QUESTIONS):
    for group in ("human", "augmented"):
        table = [
            {"imgname": f"{n}.png", "query": question, "label": label}
            for n, (of, question, label) in enumerate(rows)
            if of == group
        ]
        write_json(folder / f"test/test_{group}.json", table)
    write_pictures(folder / "test/png", [f"{n}.png" for n in range(len(rows))])


@pytest.mark.parametrize("write", [write_m4, write_lmms, write_official])
def test_items_and_prompts(write, tmp_path):
    write(tmp_path)
    items = read_all(CHARTQA, tmp_path)
    assert [item.group for item in items] == ["human", "human", "augmented"]
    assert len({item.key for item in items}) == 3
    assert [pictures_of(item) for item in items] == [[picture(n)] for n in range(3)]
    assert [item.truth["answer"] for item in items] == ["14", "Yes", "12.5"]
    assert CHARTQA.prompt(items[1]) == (
        "<image>\nIs it higher than the red one?\n"
        "Answer the question using a single word or phrase."
    )
    assert [CHARTQA.score(item, "yes") for item in items] == [0, 1, 0]
    assert CHARTQA.score(items[0], "14.5") == 1
    assert CHARTQA.answer is not None
    assert CHARTQA.answer(items[0]) == "14"


def test_damage(tmp_path):
    path = write_parquet(
        tmp_path / "test-0.parquet",
        [{"image": 0, "query": "?", "label": ["1", "2"], "human_or_machine": 0}],
    )
    said = problem_of(CHARTQA, tmp_path)
    assert said == f"{path} row 0: `label` is ['1', '2'], expected one answer"
    row = {"image": 0, "query": "?", "label": ["1"]}
    write_parquet(path, [{**row, "human_or_machine": 2}])
    assert problem_of(CHARTQA, tmp_path) == (
        f"{path} row 0: `human_or_machine` is 2, expected 0 or 1"
    )
    write_parquet(path, [row])
    assert problem_of(CHARTQA, tmp_path).startswith(
        f"{path} row 0: no `human_or_machine`; there is"
    )
    write_parquet(path, [{"image": 0, "question": "?", "answer": "1", "type": "robot_test"}])
    assert problem_of(CHARTQA, tmp_path) == (
        f"{path} row 0: `type` is robot, expected human or augmented"
    )


def test_half_of_the_official_files(tmp_path):
    write_official(tmp_path)
    (tmp_path / "test/test_augmented.json").unlink()
    assert "test_augmented.json" in problem_of(CHARTQA, tmp_path)
    (tmp_path / "test/png/0.png").unlink()
    said = problem_of(CHARTQA, tmp_path)
    assert said.startswith(f"{tmp_path}/test/test_human.json [0]: the image 0.png is missing")
