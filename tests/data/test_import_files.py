"""Which files an import reads: only those that are meant, each of them named or counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from shard_writing import draw_image
from test_import import read, rejected, run, turns

from nvlm.data.sample import SampleError, scan_shard
from nvlm.errors import DataError
from nvlm.generate.answer import answer

PICTURE = draw_image(32, 24)


def write_llava(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"id": number, "image": name, "conversations": turns("<image>\nWhat?")}
        for number, name in enumerate(names)
    ]
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (images / "deep" / "in.png").write_bytes(PICTURE)
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "good_link.png").symlink_to("deep/in.png")
    inside = ["deep/in.png", "good_link.png", "deep/../deep/in.png", str(images / "deep/in.png")]
    outside = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "deep/../../secret.png"]
    source = write_llava(tmp_path / "json", *inside, *outside)
    run("llava-json", source, tmp_path / "out", images=images)
    assert list(read(tmp_path / "out")) == ["0", "1", "2", "3"]
    found = rejected(tmp_path / "out")
    assert [found[f"entry {n}"][0] for n in range(4, 8)] == ["missing_image"] * 4
    assert "--allow-outside" in found["entry 4"][1] and "'../secret.png'" in found["entry 4"][1]
    assert "'link.png' is a link out of" in found["entry 6"][1]
    run("llava-json", source, tmp_path / "all", images=images, allow_outside=True)
    assert len(read(tmp_path / "all")) == 8


def test_names_that_nearly_are_there(tmp_path: Path):
    images = tmp_path / "images"
    (images / "a b").mkdir(parents=True)
    (images / "a b" / "Cat.JPG").write_bytes(PICTURE)
    (images / "dog.png").write_bytes(PICTURE)
    names = ["a b/cat.jpg", "a%20b/Cat.JPG", "a b\\Cat.JPG", "dog.jpg", "other.jpg", "dog.png"]
    source = write_llava(tmp_path / "json", *names)
    run("llava-json", source, tmp_path / "out", images=images)
    found = rejected(tmp_path / "out")
    for entry, meant in enumerate(["Cat.JPG", "a b/Cat.JPG", "a b/Cat.JPG", "dog.png"]):
        assert found[f"entry {entry}"][1].endswith(f"no such file; there is {meant!r}")
    assert found["entry 4"][1].endswith("no such file")


@pytest.mark.timeout(20)
def test_what_is_no_file_never_hangs(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "caption.txt")
    os.mkfifo(folder / "shard.tar")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    (folder / "caption.png").write_bytes(PICTURE)
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "good.png").write_bytes(PICTURE)
    (folder / "good.txt").write_text("A caption.")
    names = ["pipe.png", "device.png", "folder.png", "huge.png", "good.png"]
    source = write_llava(folder, *names)
    run("llava-json", source, tmp_path / "out", allow_outside=True)
    found = [detail for _, detail in rejected(tmp_path / "out").values()]
    what = ["is a pipe", "is a device", "is a folder", "1,099,511,627,776 bytes"]
    assert all(part in detail for part, detail in zip(what, found, strict=True))
    run("captions-folder", folder, tmp_path / "captions")
    details = {name: detail for name, (_, detail) in rejected(tmp_path / "captions").items()}
    assert "caption.txt: it is a pipe" in details["caption.png"]
    _, damage = scan_shard(folder / "shard.tar")
    assert isinstance(damage, SampleError) and "it is a pipe" in damage.detail
    with pytest.raises(DataError, match=r"pipe\.png: it is a pipe"):
        answer(folder, "What?", [folder / "pipe.png"], 1)


@pytest.mark.parametrize("name", ["", "a/b", "..", "../up", "-x", ".hidden", "a\nb", "a\\b", " "])
def test_splits_and_sources_are_names(tmp_path: Path, name: str):
    source = write_llava(tmp_path, "data.json")
    with pytest.raises(DataError, match=r"--split .*expected a name"):
        run("llava-json", source, tmp_path / "out", split=name)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
