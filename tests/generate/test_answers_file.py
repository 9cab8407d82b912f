"""The file of answers over kills, other settings and other questions."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from nvlm.errors import DataError
from nvlm.generate import answers_file
from nvlm.generate.answers_file import (
    AnswersFile,
    PartFile,
    fingerprint,
    part_file,
    settings_file,
)
from nvlm.generate.asked import Asked
from nvlm.places import PlaceError

SETTINGS = {"checkpoint": "/a", "model": "1", "system": None, "temperature": 0.0, "stop": ("x",)}


def questions(*ids: str) -> list[Asked]:
    return [Asked(name, (f"{name}.png",), (), {"prompt": "What?"}) for name in ids]


def row(name: str, **more: object) -> dict:
    fields = questions(name)[0].as_fields()
    return {**fields, "answer": name.upper()} if not more else {**fields, **more}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(out: Path, asked: list[Asked], *names: str, settings: dict = SETTINGS) -> None:
    with AnswersFile(out, asked, settings) as file:
        for name in names:
            file.add(row(name))


def test_rows_come_to_the_order_of_the_questions(tmp_path):
    out, asked = tmp_path / "new" / "out.jsonl", questions("a", "b", "c", "d")
    with AnswersFile(out, asked, SETTINGS) as file, PartFile(part_file(out, 1)) as part:
        assert file.done == set() and file.notes == []
        file.add(row("c"))
        part.add(row("b"))
        part.add(row("d"))
        assert [r["id"] for r in rows(out)] == ["c"]  # as soon as it is known
        file.add(row("a"))
        assert file.is_in_order  # as it was opened
        file.finish(num_replicas=2)
    assert [r["id"] for r in rows(out)] == ["a", "b", "c", "d"]
    assert {path.name for path in out.parent.iterdir()} == {"out.jsonl", "out.jsonl.settings.json"}
    with AnswersFile(out, asked, SETTINGS) as file:
        assert file.done == {0, 1, 2, 3} and file.is_in_order


def test_a_kill_leaves_rows_that_are_gone_on_from(tmp_path):
    """Torn lines are dropped, the rows of other replicas taken over, whatever their number."""
    out, asked = tmp_path / "out.jsonl", questions("a", "b", "c", "d", "e")
    write(out, asked, "b")
    for number, name in ((1, "d"), (2, "a")):
        with PartFile(part_file(out, number)) as part:
            part.add(row(name))
    with out.open("a") as file:
        file.write('{"id": "c", "answer": "')
    with part_file(out, 2).open("a") as file:
        file.write("{" + "x" * 200_000)
    with AnswersFile(out, asked, SETTINGS) as file:
        assert file.done == {0, 1, 3} and not file.is_in_order
        assert file.notes == [
            f"{out}: its last row was cut short, and is dropped",
            f"{part_file(out, 2)}: its last row was cut short, and is dropped",
        ]
        assert sorted(r["id"] for r in rows(out)) == ["a", "b", "d"]
        assert not part_file(out, 1).exists()
        file.add(row("c"))
        file.add(row("e"))
        file.finish(num_replicas=1)
    assert rows(out) == [row(name) for name in "abcde"]


def test_a_file_that_is_one_torn_line(tmp_path):
    out = tmp_path / "out.jsonl"
    write(out, questions("a"))
    out.write_text('{"id": "a"')
    with AnswersFile(out, questions("a"), SETTINGS) as file:
        assert file.done == set() and out.read_text() == ""


@pytest.mark.parametrize(
    "change, said",
    [
        ({"temperature": 0.7}, "made with temperature 0.0, now 0.7. Give another"),
        ({"system": "Hi"}, "system None, now 'Hi'"),
        ({"model": "2", "checkpoint": "/b"}, "checkpoint /a, now /b"),
        ({"model": "2"}, "other files in checkpoint /a"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, said):
    out, asked = tmp_path / "out.jsonl", questions("a", "b")
    write(out, asked, "a")
    before = out.read_bytes(), settings_file(out).read_bytes()
    with pytest.raises(DataError, match=said):
        write(out, asked, settings={**SETTINGS, **change})
    assert (out.read_bytes(), settings_file(out).read_bytes()) == before
    write(out, asked, "b", settings={**SETTINGS, "checkpoint": "/copied"})  # the same files
    assert len(rows(out)) == 2


def test_other_questions_are_refused_and_more_are_not(tmp_path):
    out, asked = tmp_path / "out.jsonl", questions("a", "b")
    write(out, asked, "a")
    with pytest.raises(DataError, match="line 1: answers the question 'a', which is not asked"):
        write(out, questions("b"))
    with pytest.raises(DataError, match=r"the question 'a' had another prompt: 'What\?', now 'Why"):
        write(out, [Asked("a", ("a.png",), (), {"prompt": "Why?"})])
    with AnswersFile(out, questions("new", "a"), SETTINGS) as file:
        assert file.done == {1}


def test_an_error_goes_when_its_question_is_repaired(tmp_path):
    out = tmp_path / "out.jsonl"
    error = {"reason": "json", "detail": "not readable"}
    with AnswersFile(out, [Asked(1, (), (), {}), *questions("b")], SETTINGS) as file:
        file.add({"id": 1, "images": [], "error": error})
        file.add(row("b", error=error))
    with AnswersFile(out, questions("a", "b"), SETTINGS) as file:
        assert file.done == {1} and not file.is_in_order
        file.add(row("a"))
        file.finish(num_replicas=1)
    assert [r["id"] for r in rows(out)] == ["a", "b"]
    # One whose question is not asked any more.
    with AnswersFile(out, questions("a"), SETTINGS) as file:
        assert file.done == {0} and not file.is_in_order
        file.finish(num_replicas=1)
    assert [r["id"] for r in rows(out)] == ["a"]


def test_files_of_something_else(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with pytest.raises(DataError, match=r"exists, and beside it is no out\.jsonl\.settings\.json"):
        write(out, questions("a"))
    settings_file(out).write_text(json.dumps(SETTINGS))
    with pytest.raises(DataError, match=r"line 1: is no row of an answer: b'precious"):
        write(out, questions("a"))
    assert out.read_text() == "precious\n"
    with pytest.raises(PlaceError, match="is a folder"):
        write(tmp_path, questions("a"))


def _write_in_another_process(out: Path, queue) -> None:
    try:
        write(out, questions("a"))
    except DataError as error:
        queue.put(str(error))


def test_two_that_write_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(answers_file, "SECONDS_TO_END", 0.0)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with AnswersFile(tmp_path / "out", questions("a"), SETTINGS):
        other = context.Process(target=_write_in_another_process, args=(tmp_path / "out", queue))
        other.start()
        assert "another `nvlm generate` is writing it" in queue.get()
        other.join()


def test_a_fingerprint_is_of_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(300_000) + b"end")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "weights").write_bytes(bytes(300_000) + b"END")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
