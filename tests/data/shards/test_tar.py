"""Our reader of tar headers agrees with Python's tarfile, whoever wrote the archive."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from nvlm.data.shards.tar import TarDamageError, read_members

NAMES = [
    "a.jpg", "a.json", "folder/b.txt", "./dotted/c.0.png", "k" * 99 + ".json", "k" * 120 + ".json",
    "d" * 90 + "/" + "e" * 90 + ".jpg", "d" * 160 + "/" + "e" * 101 + ".jpg", "日本語/ключ.json",
    "é" * 80 + ".json", "spaces and\nnewline.txt", "no_extension", "trailing.dot.",
]  # fmt: skip
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]


def write(path: Path, tar_format: int, names: list[str], pax: dict | None = None) -> Path:
    with tarfile.open(path, "w", format=tar_format, pax_headers=pax) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = [0, 1, 511, 512, 513, 5000][number % 6]
            info.mtime = 1.5  # pax writes a header of its own for it
            tar.addfile(info, io.BytesIO(bytes(info.size)))
            if number == 2:
                folder = tarfile.TarInfo("some folder")
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
                for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                    link = tarfile.TarInfo("l" * 150 if tar_format != tarfile.USTAR_FORMAT else "l")
                    link.type, link.linkname = kind, "a.jpg"
                    tar.addfile(link)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_names_places_and_sizes_are_those_of_tarfile(tmp_path: Path, name: str):
    names = NAMES
    if name == "ustar":  # cannot hold them
        names = [n for n in NAMES if len(n.encode()) < 100 or ("/" in n and len(n) < 200)]
    shard = write(tmp_path / "a.tar", FORMATS[name], names)
    members = list(read_members(shard))
    assert members == by_tarfile(shard)
    assert [member.name for member in members] == names


def test_header_for_the_whole_archive(tmp_path: Path):
    shard = write(tmp_path / "a.tar", tarfile.PAX_FORMAT, NAMES, {"comment": "from somewhere"})
    assert list(read_members(shard)) == by_tarfile(shard)


@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_the_tar_program(tmp_path: Path, tar_format: str):
    program = shutil.which("tar")
    assert program is not None
    (tmp_path / "in").mkdir()
    for number, name in enumerate(["a.json", "b.jpg", "ü.txt", "x" * 90 + ".json"]):
        (tmp_path / "in" / name).write_bytes(bytes(number * 700))
    shard = tmp_path / "a.tar"
    subprocess.run(
        [program, f"--format={tar_format}", "-cf", shard, "-C", tmp_path, "in"], check=True
    )
    members = list(read_members(shard))
    assert members == by_tarfile(shard)
    assert len(members) == 4


def test_binary_sizes_of_members_over_8_gigabytes(tmp_path: Path):
    info = tarfile.TarInfo("large.bin")
    info.size = 9 << 30
    shard = tmp_path / "a.tar"
    with shard.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)  # a hole: takes no space
    assert list(read_members(shard)) == [("large.bin", 512, info.size)] == by_tarfile(shard)


def test_name_that_is_not_utf_8(tmp_path: Path):
    shard = write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["caf\udce9.json"])
    assert list(read_members(shard)) == by_tarfile(shard)


def test_sparse_members_are_refused(tmp_path: Path):
    program = shutil.which("tar")
    assert program is not None
    with (tmp_path / "hole.bin").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for tar_format in ("gnu", "posix"):
        shard = tmp_path / f"{tar_format}.tar"
        subprocess.run(
            [
                program,
                f"--format={tar_format}",
                "--sparse",
                "-cf",
                shard,
                "-C",
                tmp_path,
                "hole.bin",
            ],
            check=True,
        )
        with pytest.raises(TarDamageError, match=r"hole\.bin.*--sparse"):
            list(read_members(shard))


@pytest.mark.parametrize("field", [slice(124, 136), slice(148, 156)])
def test_damaged_numbers(tmp_path: Path, field: slice):
    shard = write(tmp_path / "a.tar", tarfile.USTAR_FORMAT, ["a.json"])
    raw = bytearray(shard.read_bytes())
    raw[field] = b"\xff" * (field.stop - field.start)
    if field.start == 124:
        raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:512]) + 8 * 32)
    shard.write_bytes(raw)
    with pytest.raises(TarDamageError):
        list(read_members(shard))
