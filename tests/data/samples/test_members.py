"""No image in a tar makes a sample of text alone, whatever its member is called."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from random import Random

import pytest
from helpers.importing import read, rejected, run
from helpers.shard_writing import as_json, draw_image, write_shard

from nvlm.data.index.source_index import open_indexes
from nvlm.importers.run import ImportSummary

IMAGE, OTHER = draw_image(30, 20, 1, "JPEG"), draw_image(20, 30, 2, "JPEG")
TEXT = as_json(("user", "What is it?"), ("assistant", "A cat."))
ONE = {"it": [IMAGE]}
TWO = {"it": [IMAGE, OTHER]}
# Members -> the images that are read, or what the reason names.
MEMBERS = {
    "jfif": ({"jfif": IMAGE}, ONE),
    "other case": ({"JPEG": IMAGE}, ONE),
    "another extension": ({"img": IMAGE}, ONE),
    "bytes": ({"bin": IMAGE}, ONE),
    "pickle by name": ({"pyd": IMAGE}, ONE),
    "no extension of its own": ({"image": IMAGE}, ONE),
    "one name": ({"image.jpg": IMAGE}, ONE),
    "one name and others": ({"input.jpg": IMAGE, "cls": b"7", "npy": b"\x93NUMPY"}, ONE),
    "an image and its mask": ({"jpg": IMAGE, "mask.png": OTHER}, ONE),
    "an image and its depth": ({"image.jpg": IMAGE, "depth.png": OTHER}, ONE),
    "an image and a sound": ({"jpg": IMAGE, "wav": b"RIFF"}, ONE),
    "pages": ({"page10.jpg": OTHER, "page9.jpg": IMAGE}, TWO),
    "numbers": ({"1.jpg": OTHER, "0.jpg": IMAGE}, TWO),
    "two names": ({"left.jpg": IMAGE, "right.jpg": OTHER}, r"\.left\.jpg, \.right\.jpg"),
    "a name beside the only one": ({"jpg": IMAGE, "second.jpg": OTHER}, r"\.jpg, \.second\.jpg"),
    "two types": ({"jpg": IMAGE, "jfif": OTHER}, r"appears twice: \.jfif, \.jpg"),
    "two of other types": ({"img1": IMAGE, "img2": OTHER}, r"\.img1, \.img2"),
    "only a mask": ({"mask.png": IMAGE}, r"\.mask\.png, is a mask"),
    "a drawing": ({"svg": b"<svg/>"}, r"\.svg is an image of a type that is not read"),
    "a document": ({"pdf": b"%PDF-1.7"}, r"\.pdf is an image of a type"),
    "a sound": ({"wav": b"RIFF"}, r"\.wav is sound"),
    "a video of another type": ({"mpg": b"\0\0\1\xba"}, r"\.mpg is a video of a type"),
    "an image that is none": ({"avif": b"junk"}, "text|image"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_images_of_any_name(make_config, tmp_path: Path, name: str):
    members, expected = MEMBERS[name]
    shard = write_shard(tmp_path / "in" / "a.tar", [{"__key__": "it", "json": TEXT, **members}])
    marks = "<image>\n" * (len(expected["it"]) if isinstance(expected, dict) else 0)
    stored = {"__key__": "it", "json": TEXT.replace(b"What", marks.encode() + b"What"), **members}
    stored["json"] = stored["json"].replace(b"\n", b"\\n")
    write_shard(tmp_path / "data" / "train" / "a" / "a.tar", [stored, GOOD])
    write_shard(shard, [{"__key__": "it", "json": TEXT, **members}, GOOD])
    (index,) = open_indexes(make_config(f"data.root={tmp_path / 'data'}"))
    summary = run("webdataset", tmp_path / "in", tmp_path / "out")
    if isinstance(expected, dict):
        assert {key: images for key, (_, images) in read(tmp_path / "out").items()} == (
            expected | {"good": [IMAGE]}
        )
        assert summary.num_rejected == 0 and _listed(summary, members, len(expected["it"]))
        assert len(index) == 2 and index.num_rejected == {}
        assert len(index.image_ranges(0)) == len(expected["it"])
        return
    (detail,) = (detail for _, detail in rejected(tmp_path / "out").values())
    (in_place,) = index.rejected
    for text in (detail, in_place.detail):
        assert re.search(expected, text), text


GOOD = {"__key__": "good", "json": as_json(("user", "<image>"), ("assistant", "A.")), "jpg": IMAGE}


def _listed(summary: ImportSummary, members: dict, num_images: int) -> bool:
    """Whether what is not an image of the sample is listed."""
    listed = [name for name in summary.unused_fields if name.startswith("member .")]
    return len(listed) == len(members) - num_images


def test_members_that_stand_twice_or_have_no_key(tmp_path: Path):

    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name, data in [
            ("README", b"x"), ("__MACOSX/._a.jpg", b"x"), ("a.jpg", IMAGE), ("a.JPG", OTHER),
            ("a.txt", b"A."), ("b.jpg", IMAGE), ("b.txt", b"B."),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    run("webdataset", tmp_path / "in", tmp_path / "out")
    assert list(read(tmp_path / "out")) == ["b"]
    found = rejected(tmp_path / "out")
    assert {name: reason for name, (reason, _) in found.items()} == {
        "a.tar/README": "missing_member", "a.tar/a": "duplicate"
    }  # fmt: skip


def test_images_that_a_json_names_and_a_tar_has_not(make_config, tmp_path: Path):
    text = json.loads(TEXT) | {"image": "cat.jpg"}
    sample = {"__key__": "it", "json": json.dumps(text).encode()}
    write_shard(tmp_path / "data" / "train" / "a" / "a.tar", [sample, GOOD])
    (index,) = open_indexes(make_config(f"data.root={tmp_path / 'data'}"))
    assert [(r.reason, "cat.jpg" in r.detail) for r in index.rejected] == [("missing_image", True)]
    run("webdataset", tmp_path / "data" / "train" / "a", tmp_path / "out")
    assert list(read(tmp_path / "out")) == ["good"]
    assert "cat.jpg" in rejected(tmp_path / "out")["a.tar/it"][1]


@pytest.mark.parametrize("seed", range(3))
def test_every_member_is_used_listed_or_its_sample_rejected(tmp_path: Path, seed: int):
    """Random members; nothing is lost, and no image is taken for nothing."""
    random = Random(seed)
    names = ["", "0.", "1.", "2.", "left.", "page1.", "page2.", "mask.", "image."]
    types = ["jpg", "PNG", "jfif", "avif", "img", "bin", "cls", "npy", "wav", "svg", "mp4", "xyz"]
    contents = [IMAGE, OTHER, b"", b"7", b"\x93NUMPY", b"RIFF", b"\0" * 40]
    samples = []
    for number in range(150):
        members = {
            random.choice(names) + random.choice(types): random.choice(contents)
            for _ in range(random.randint(0, 3))
        }
        text = {"txt": b"A cat."} if random.random() < 0.5 else {"json": TEXT}
        samples.append({"__key__": f"{number:03d}", **text, **members})
    write_shard(tmp_path / "in" / "a.tar", samples)
    summary = run("webdataset", tmp_path / "in", tmp_path / "out")
    assert summary.num_samples + summary.num_rejected == len(samples)
    assert summary.num_samples > 20
    lost = {name.partition("/")[2] for name in rejected(tmp_path / "out")}
    others = sum(len(s) - 2 for s in samples if s["__key__"] not in lost)
    listed = sum(n for name, n in summary.unused_fields.items() if name.startswith("member ."))
    assert others == summary.num_images + listed
    # Of samples without an image or a video, none of the members begins as an image does.
    without = stored_without_images(tmp_path / "out")
    for sample in samples:
        pictures = [v for k, v in sample.items() if k not in ("__key__", "txt", "json")]
        if sample["__key__"] in without:
            assert IMAGE not in pictures and OTHER not in pictures


def stored_without_images(out: Path) -> set[str]:
    with tarfile.open(next((out / "train" / "it").glob("*.tar"))) as tar:
        names = tar.getnames()
    keys = [name.partition(".")[0] for name in names]
    return {key for key in keys if keys.count(key) == 1}
