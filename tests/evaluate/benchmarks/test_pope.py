"""POPE from its published files."""

from __future__ import annotations

import pytest
from helpers import benchmark_data_b as made

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.pope import POPE


def test_the_three_files(tmp_path):
    items = list(POPE.read(made.write_pope(tmp_path), "test"))
    assert [item.key for item in items[:5]] == [
        "random-1", "random-2", "random-3", "random-4", "popular-1",
    ]  # fmt: skip
    assert [item.truth["label"] for item in items[:4]] == ["no", "yes", "no", "yes"]
    assert [item.group for item in items[::4]] == ["random", "popular", "adversarial"]
    assert items[1].images[0]() == items[5].images[0]() == made.drawn(1)
    assert POPE.prompt(items[8]) == (
        "<image>\nIs there a adversarial ball in the image?\n"
        "Answer the question using a single word or phrase."
    )


def test_parquet(tmp_path):
    rows = [
        {"question_id": str(n), "question": "Is there a ball?", "answer": "no", "category": group}
        for group in ("random", "popular")
        for n in (1, 2)
    ]
    made.write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    made.write_parquet(tmp_path / "Full" / "random-00000-of-00001.parquet", rows)
    items = list(POPE.read(tmp_path, "test"))
    assert [item.key for item in items] == ["random-1", "random-2", "popular-1", "popular-2"]
    assert items[3].images[0]() == made.drawn(3)


def test_the_number_is_the_mean_of_the_groups(tmp_path):
    items = list(POPE.read(made.write_pope(tmp_path), "test"))
    answers = ["no", "yes", "no", "yes"] + ["yes"] * 4 + ["no", "no", "yes", "There is."]
    scores = [POPE.score(item, answer) for item, answer in zip(items, answers, strict=True)]
    assert scores == [1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1]
    summary = POPE.summarise(items, answers, scores)
    f1 = [100, 100 * 2 / 3, 50]
    assert summary.score == pytest.approx(sum(f1) / 3)
    assert summary.parts["popular recall"] == 100 and summary.parts["popular yes ratio"] == 100
    assert summary.parts["accuracy"] == pytest.approx(100 * 8 / 12)
    assert summary.parts["adversarial F1"] == pytest.approx(f1[2])


def test_what_is_wrong_is_named(tmp_path):
    folder = made.write_pope(tmp_path)
    path = folder / "coco" / "coco_pope_popular.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"yes"', '"maybe"')]))
    with pytest.raises(DataError, match=r"popular.json line 2: `label` is 'maybe', expected yes"):
        list(POPE.read(folder, "test"))
    path.write_text(lines[0] + "\n{")
    with pytest.raises(DataError, match=r"popular.json line 2: not JSON"):
        list(POPE.read(folder, "test"))
    path.unlink()
    with pytest.raises(DataError, match=r"neither there nor below is .*coco_pope_popular.json"):
        list(POPE.read(folder, "test"))
