"""Whether a place can be written is found out by writing, and nothing is left there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvlm.places import PlaceError, check_file, check_folder


def test_places_that_can_be_written_stay_as_they_are(tmp_path: Path):
    check_folder(tmp_path / "a" / "b" / "c", "run.dir")
    check_file(tmp_path / "a" / "answers.jsonl", "--out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link"):
        check_folder(tmp_path / name, "run.dir")
        check_file(tmp_path / name / "file", "--out")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    assert (tmp_path / "there" / "file").read_text() == "x"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("file", "is a file; name a folder"),
        ("file/below/it", "Not a directory"),
        ("n" * 300, "name too long"),
        ("dangling", "cannot be written"),
        ("dangling/below", "cannot be written"),
    ],
)
def test_folders(name: str, expected: str, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    with pytest.raises((PlaceError, OSError), match=expected):
        check_folder(tmp_path / name, "run.dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.parametrize(
    "name, expected",
    [
        (".", "is a folder; name a file"),
        ("pipe", "is a device or a pipe"),
        ("pipe/below", "is a file; name a folder"),
        ("n" * 253, "the name is too long"),
    ],
)
def test_files(name: str, expected: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlaceError, match=f"^--out .*{expected}"):
        check_file(tmp_path / name, "--out")


@pytest.fixture(params=["size=16k", "ro,size=1m"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    if "ro" not in request.param:
        (disk / "full").write_bytes(bytes(16384))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disks_that_are_full_or_read_only(small_disk: Path):
    with pytest.raises(PlaceError, match=r"No space left on device: f|Read-only file system: c"):
        check_folder(small_disk / "run", "run.dir")
    assert not (small_disk / "run").exists()
