"""Files are whole or not there, whatever happens while they are written."""

from pathlib import Path

import pytest

from nvlm.errors import NvlmError
from nvlm.files import (
    folder_beside,
    json_line,
    parse_size,
    read_json_lines,
    write_text,
    written_beside,
)


def test_a_file_is_replaced_by_a_whole_one(tmp_path: Path):
    path = tmp_path / "file"
    write_text(path, "before")
    with written_beside(path) as beside:
        beside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "file"
    write_text(path, "before")

    def write_half() -> None:
        with written_beside(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_and_what_a_killed_one_left_is_removed(tmp_path: Path):
    folder = tmp_path / "folder"
    for content in ("first", "second"):
        with folder_beside(folder) as beside:
            assert not list(beside.iterdir())
            (beside / content).touch()
        assert [path.name for path in folder.iterdir()] == [content]

    def write_half() -> None:
        with folder_beside(folder) as beside:
            (beside / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in folder.iterdir()] == ["second"]
    with folder_beside(folder) as beside:
        assert not list(beside.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_lines_of_json(tmp_path: Path):
    values = [{"text": "two\nlines\u2028 and \udcff"}, ["a", 1], None]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(map(json_line, values)))
    assert list(read_json_lines(path)) == values


@pytest.mark.parametrize(
    "text, size",
    [("500MB", 500_000_000), ("2 gb", 2 * 10**9), ("1.5GB", 1_500_000_000), ("7B", 7)],
)
def test_sizes(text: str, size: int):
    assert parse_size(text, "--shard-size") == size


@pytest.mark.parametrize("text", ["", "5", "0GB", "-1MB", "0.0001KB", "9" * 400 + "GB", "many"])
def test_what_is_no_size(text: str):
    with pytest.raises(NvlmError, match=r"--shard-size .*: expected a size such as 500MB"):
        parse_size(text, "--shard-size")
