"""A benchmark's folder of answers, and what it notes of the files that were read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.benchmark_answers import write_answers
from helpers.benchmark_data import write_realworldqa

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.compare import compare
from nvlm.evaluate.suite.files import describe_files, list_files
from nvlm.evaluate.suite.folder import Part, begin, check_folder_of, finish, read_rows
from nvlm.evaluate.suite.scores import score_all

REALWORLDQA = BENCHMARKS["realworldqa"]


def test_a_line_cut_by_a_kill_is_asked_again(tmp_path):
    begin(tmp_path, {})
    with Part(tmp_path, 0) as part:
        part.add({"key": "a", "answer": "1"})
    path = tmp_path / "parts" / "00000.jsonl"
    with path.open("a") as file:
        file.write('{"key": "b", "ans')
    with Part(tmp_path, 1) as part:
        part.add({"key": "c", "skipped": {"reason": "image", "detail": "cut"}})
    assert list(read_rows(tmp_path)) == ["a", "c"]
    with Part(tmp_path, 0) as part:
        part.add({"key": "b", "answer": "2"})
    rows = read_rows(tmp_path)
    assert {key: row.get("answer") for key, row in rows.items()} == {"a": "1", "b": "2", "c": None}
    finish(tmp_path, [rows[key] for key in "abc"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "predictions.jsonl", "settings.json", "skipped.jsonl",
    ]  # fmt: skip
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("line", ["{", '{"kee": 1}', '["key"]', "3", '{"key": 3}'])
def test_a_damaged_line_is_named(tmp_path, line):
    begin(tmp_path, {})
    (tmp_path / "predictions.jsonl").write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n')
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 2: not an answer"):
        read_rows(tmp_path)


def test_a_damaged_folder_is_named(tmp_path):
    out = write_answers(tmp_path / "a", [1, 0]) / "realworldqa"
    about = json.loads((out / "settings.json").read_text())
    check_folder_of(out, about)
    (out / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings\.json: cannot be read"):
        check_folder_of(out, about)


def edit(out: Path, change: Callable[[list[dict]], object]) -> None:
    path = out / "realworldqa" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows[1].pop("answer"), r"predictions\.jsonl, line 2: not an answer"),
        (lambda rows: rows[2].update(answer=None), r"predictions\.jsonl, line 3: not an answer"),
        (lambda rows: rows[0].update(truth="1"), r"predictions\.jsonl, line 1: not an answer"),
        (lambda rows: rows.append(rows[1]), "the question 0001 is there 2 times"),
        (list.clear, "has no answers"),
    ],
)
def test_edited_answers_are_scored_or_refused(tmp_path, change, said):
    out = write_answers(tmp_path / "a", [1, 0, 1])
    edit(out, lambda rows: rows[1].update(answer="1"))
    assert score_all(out)[0]["score"] == 100
    edit(out, change)
    with pytest.raises(DataError, match=said):
        score_all(out)
    with pytest.raises(DataError, match=said):
        compare(out, out)


def test_settings_that_say_too_little_are_named(tmp_path):
    out = write_answers(tmp_path / "a", [1, 0, 1])
    (out / "realworldqa" / "settings.json").write_text('{"benchmark": "realworldqa"}')
    for read in (lambda: score_all(out), lambda: compare(out, out)):
        with pytest.raises(DataError, match=r"settings\.json: is not what an evaluation wrote"):
            read()


def describe(data: Path) -> dict:
    return describe_files(REALWORLDQA, data)["files"]


def test_files_are_known_by_their_content(tmp_path):
    data = write_realworldqa(tmp_path / "data")
    shutil.copytree(data, tmp_path / "copy")
    first = describe(data)
    assert first == describe(tmp_path / "copy")
    path = data / "realworldqa" / "data" / "test-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert describe(data) != first


def test_a_download_from_the_hub_has_its_revision(tmp_path):
    data = write_realworldqa(tmp_path)
    note = (
        data / "realworldqa/.cache/huggingface/download/data/test-00000-of-00002.parquet.metadata"
    )
    note.parent.mkdir(parents=True)
    note.write_text(f"{'ab' * 20}\netag\n1700000000.0\n")
    assert describe_files(REALWORLDQA, data)["hub_revisions"] == ["ab" * 20]


def test_what_is_there_is_listed(tmp_path):
    assert "none found" in list_files(REALWORLDQA, tmp_path)
    write_realworldqa(tmp_path)
    assert "2 found" in list_files(REALWORLDQA, tmp_path)
