"""RefCOCO, RefCOCO+ and RefCOCOg from their published files."""

from __future__ import annotations

import json

import pytest
from helpers import benchmark_data_b as made

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.refcoco import REFCOCO, REFCOCO_PLUS, REFCOCOG

PROMPT = (
    "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: "
    "<ref>{}</ref>"
)


def test_parquet_has_a_question_for_each_expression(tmp_path):
    made.write_parquet(tmp_path / "data" / "testA-00000-of-00001.parquet", made.refcoco_rows())
    items = list(REFCOCO.read(tmp_path, "testA"))
    assert [item.key for item in items] == ["0-0", "0-1", "1-0"]
    assert REFCOCO.prompt(items[1]) == PROMPT.format("red ball on the left")
    assert [item.truth["box"] for item in items] == [[0.25, 0.25, 0.75, 0.75]] * 2 + [[0, 0, 1, 1]]
    assert [item.images[0]() for item in items] == [made.drawn(n) for n in (0, 0, 1)]
    assert REFCOCO.score(items[0], "[[250, 250, 750, 700]]") == 1
    assert REFCOCO.score(items[0], "<box>(250, 250), (750, 450)</box>") == 0


@pytest.mark.parametrize(
    "entry, prefix, splits",
    [
        (REFCOCO, "refcoco", ("val", "testA", "testB")),
        (REFCOCO_PLUS, "refcoco+", ("val", "testA", "testB")),
        (REFCOCOG, "refcocog", ("val", "test")),
    ],
)
def test_lines_of_qwen_vl_and_internvl(entry, prefix, splits, tmp_path):
    assert entry.splits == splits
    folder = made.write_refcoco_lines(tmp_path, entry.name, prefix, splits[-1])
    items = list(entry.read(folder, splits[-1]))
    assert [entry.prompt(item) for item in items] == [
        PROMPT.format("the ball"), PROMPT.format("a dog"),
    ]  # fmt: skip
    assert items[1].truth == {"box": [0.25, 0.25, 0.75, 0.75]}
    assert items[1].images[0]() == made.drawn(1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [1, 2, 3]}, r"line 1: `bbox` is \[1, 2, 3\], expected 4 numbers"),
        ({"bbox": [9, 2, 3, 4]}, r"line 1: a box with corners \[9.0, 2.0, 3.0, 4.0\] in 640 x 480"),
        ({"width": 0}, r"line 1: a box with corners .* in 0 x 480 pixels"),
        ({"image": "train2014/none.jpg"}, r"line 1: the image train2014/none.jpg is missing"),
        ({"sent": ""}, r"line 1: `sent` is '', expected a text"),
    ],
)
def test_what_is_wrong_is_named(change, message, tmp_path):
    folder = made.write_refcoco_lines(tmp_path, "refcoco", "refcoco", "val")
    path = folder / "refcoco_val.jsonl"
    line = json.loads(path.read_text().splitlines()[0]) | change
    path.write_text(json.dumps(line))
    with pytest.raises(DataError, match=message):
        list(REFCOCO.read(folder, "val"))


def test_a_damaged_picture_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "drawn", lambda number: b"no picture")
    made.write_parquet(tmp_path / "val-0.parquet", made.refcoco_rows())
    with pytest.raises(DataError, match=r"val-0.parquet row 0: its image cannot be read"):
        list(REFCOCO.read(tmp_path, "val"))
