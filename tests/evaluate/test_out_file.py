"""The file of answers is whole or as it was, and nothing else of the user's is touched."""

from __future__ import annotations

import json
import os

import pytest

from nvlm.errors import DataError
from nvlm.evaluate.out_file import OutFile, check_out

ROW = {"answer": "a", "answer_token_ids": [1], "truth": ["a"]}


def test_replaced_only_when_whole(tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    with OutFile(out) as file:
        file.note(ROW)
        assert not out.exists()
        file.finish([ROW, ROW])
    assert [json.loads(line) for line in out.read_text().splitlines()] == [ROW, ROW]
    before = out.read_bytes()

    def interrupted() -> None:
        with OutFile(out) as file:
            assert file.replaces
            file.note(ROW | {"answer": "b"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_files_of_similar_names_stay(tmp_path):
    out = tmp_path / "answers.jsonl"
    mine = [
        tmp_path / name for name in ("answers.jsonl.part0", "answers.jsonl.tmp", ".answers.part")
    ]
    for path in mine:
        path.write_text("mine")
    # What a killed evaluation of this machine left; one that may live, of another.
    stale = tmp_path / f".answers.jsonl.{os.uname().nodename}-{2**22 + 1}.part"
    others = tmp_path / ".answers.jsonl.elsewhere-1.part"
    stale.write_text("{")
    others.write_text("{")
    with OutFile(out) as file:
        file.finish([ROW])
    assert set(tmp_path.iterdir()) == {out, others, *mine}
    assert {path.read_text() for path in mine} == {"mine"}


def test_a_link_stays_a_link(tmp_path):
    target = tmp_path / "there.jsonl"
    link = tmp_path / "link.jsonl"
    link.symlink_to(target)
    with OutFile(link) as file:
        file.finish([ROW])
    assert link.is_symlink() and target.is_file()


def test_what_is_no_file_of_answers_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder; give the name of a file in it"):
        check_out(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(DataError, match="is not a regular file"):
            check_out(type(tmp_path)(path))
    for text in ("run: {}\n", '{"id": 1}\n', "[1]\n", "\0\xff"):
        (tmp_path / "mine").write_text(text)
        with pytest.raises(DataError, match="does not hold an evaluation's answers"):
            check_out(tmp_path / "mine")
        assert (tmp_path / "mine").read_text() == text
    (tmp_path / "empty").touch()
    assert not check_out(tmp_path / "empty")
    with pytest.raises(DataError, match="mine is a file, not a folder"):
        OutFile(tmp_path / "mine" / "below" / "answers.jsonl")
    with pytest.raises(DataError, match="cannot be written: File name too long"):
        OutFile(tmp_path / ("a" * 300))
