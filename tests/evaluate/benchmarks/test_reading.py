"""What a damaged or hostile file of a benchmark comes to: items, or one DataError that names it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import benchmark_data_b as made

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    json_line_rows,
    json_rows,
    parquet_rows,
    tsv_rows,
)
from nvlm.evaluate.benchmarks.table import BENCHMARKS

VALUES = (
    None, True, 5, -1.5, "", " ", "x", "../x", "/etc/passwd", "\0", [], [None], [[]], {}, [{}],
)  # fmt: skip
FORMATS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "vqav2": (lambda data: made.write_vqa(data, "vqav2", "v2_", "val2014"), "val", "*.json"),
    "vizwiz": (made.write_vizwiz, "val", "*.json"),
    "coco_captions": (made.write_karpathy, "test", "*.json"),
    "nocaps": (made.write_nocaps, "val", "*.json"),
    "textcaps": (made.write_textcaps, "val", "*.json"),
    "seed": (made.write_seed, "test", "*.json"),
    "pope": (made.write_pope, "test", "*/*random.json"),
    "refcoco": (
        lambda data: made.write_refcoco_lines(data, "refcoco", "refcoco", "val"), "val", "*.jsonl",
    ),
}  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The ways to every value in a JSON value, of lists the first two alone."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value[:2]):
            yield from places(part, (*path, number))


def changed(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


@pytest.mark.parametrize("name", FORMATS)
def test_any_other_value_is_read_or_named(name, tmp_path):
    if BENCHMARKS[name].check is not None:
        pytest.importorskip("pycocoevalcap")
    write, split, pattern = FORMATS[name]
    folder = write(tmp_path)
    entry = BENCHMARKS[name]
    named = []
    for path in sorted(folder.glob(pattern)):
        content = path.read_text()
        is_lines = "\n" in content.strip()
        value = [json.loads(line) for line in content.splitlines()] if is_lines else None
        value = json.loads(content) if value is None else value
        for place in places(value):
            if is_lines and not place:
                continue
            for new in VALUES:
                made.write_json(path, changed(value, place, new))
                if is_lines:
                    rows = changed(value, place, new)
                    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                try:
                    items = list(entry.read(folder, split))
                    json.dumps([(item.truth, item.fields) for item in items])
                    assert all(entry.prompt(item) for item in items)
                    assert all(0 <= entry.score(item, "x") <= 1 for item in items)
                except DataError as error:
                    named.append(str(error))
        path.write_text(content)
    assert len(named) > 50
    assert all(str(folder) in message for message in named)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "some.json"
    with pytest.raises(DataError, match=r"some\.json: not readable"):
        list(json_line_rows(path))
    path.write_bytes(b"\xff\xfe{}")
    for read in (json_rows, json_line_rows, lambda p: tsv_rows(p, "image")):
        with pytest.raises(DataError, match=r"some\.json"):
            list(read(path))
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="not readable as JSON"):
        list(json_rows(path))
    with pytest.raises(DataError, match=r"some\.json: not readable as parquet"):
        list(parquet_rows([path], ["question"]))
    with pytest.raises(DataError, match=r"neither there nor below is \*\.tsv or b"):
        find_files(tmp_path, ["*.tsv", "b"])


def test_images_are_read_when_their_turn_comes(tmp_path):
    path = tmp_path / "rows.parquet"
    made.write_parquet(path, [{"key": n} for n in range(5)])
    rows = list(parquet_rows([path], ["key"], ["nothing"], "image"))
    assert [row.values for row in rows] == [{"key": n} for n in range(5)]
    assert rows[4].images[0]() == made.drawn(4) and rows[0].images[0]() == made.drawn(0)
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(DataError, match=r"rows\.parquet row 3: the image cannot be read"):
        rows[3].images[0]()


def test_an_image_that_goes_away_is_named(tmp_path):
    made.write_images(tmp_path, ["a.jpg"])
    row = Row({}, "FILE row 7")
    source = ImageFolders([tmp_path / "none", tmp_path]).find("a.jpg", row)
    assert source() == made.drawn(0)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: not readable .*, which FILE row 7 needs"):
        source()


@pytest.mark.parametrize("name", ["", "../a.jpg", "/etc/passwd", "x/../../a.jpg", "a\0b"])
def test_names_that_lead_out_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="FILE row 7"):
        ImageFolders([tmp_path]).find(name, Row({}, "FILE row 7"))


def test_tsv_cells_are_read_as_pandas_writes_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    texts = ["plain", "a\ttab", 'a "quote"', "two\nlines", "東京", " spaces ", "'"]
    rows = [{"index": n, "text": text, "image": "QUJD" * 40} for n, text in enumerate(texts)]
    path = tmp_path / "some.tsv"
    pandas.DataFrame(rows).to_csv(path, sep="\t", index=False)
    read = list(tsv_rows(path, "image"))
    assert [row.values["text"] for row in read] == texts
    assert {row.images[0]() for row in read} == {b"ABC" * 40}
    path.write_text(path.read_text().replace("QUJD", "QU!D"))
    with pytest.raises(DataError, match=r"some\.tsv row 1: its image is not base64"):
        next(tsv_rows(path, "image")).images[0]()


@pytest.mark.parametrize(
    "names, said",
    [
        (["test-00001-of-00003"], "2 of the 3 files test-*-of-00003 are missing, the first is "
         "number 00000"),
        (["test-00000-of-00001", "test-00000-of-00002"], "are of two downloads"),
        (["test-00000-of-00001-ab", "test-00000-of-00001-cd"], "are of two downloads"),
    ],
)  # fmt: skip
def test_half_a_download_is_refused_and_two_of_them(tmp_path, names, said):
    (tmp_path / "physics").mkdir()
    for name in names:
        (tmp_path / "physics" / f"{name}.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(said)):
        find_files(tmp_path, ["**/test-*.parquet"])


def test_numbered_files_that_are_all_there(tmp_path):
    names = [
        "art/test-00000-of-00002-ab.parquet", "art/test-00001-of-00002-cd.parquet",
        "music/test-00000-of-00001.parquet",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_files(tmp_path, ["**/test-*.parquet"]) == [tmp_path / name for name in names]
