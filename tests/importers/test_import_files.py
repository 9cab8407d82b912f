"""Which files an import reads: only those that are meant, each of them named or counted."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.importing import read, rejected, run, turns
from helpers.shard_writing import draw_image, write_shard

from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import scan_shard
from nvlm.data.shards.splits import split_of_file
from nvlm.errors import DataError

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


@pytest.mark.parametrize("name", ["", "a/b", "..", "../up", "-x", ".hidden", "a\nb", "a\\b", " "])
def test_splits_and_sources_are_names(tmp_path: Path, name: str):
    source = write_llava(tmp_path, "data.json")
    with pytest.raises(DataError, match=r"--split .*expected a name"):
        run("llava-json", source, tmp_path / "out", split=name)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


NAMES = {
    "train": ("train-00000-of-00001.parquet name_train.jsonl train2017/a.tar "),
    "test": (
        "TEST.tar default/test/0000.parquet testA.json test-dev2015.tar Testing/x.tar "
        "seg_test/0.tar "
    ),
    "validation": (
        "val-000000.tar captions_val2017.json shard-dev-3.tar a/eval.tar train/val-0.tar "
    ),
    "train+validation": ("train_val.tar trainval.tar "),
    None: (
        "heldout-0.tar minitest-0.tar training_data.tar contest-1.tar latest.parquet "
        "trainer.parquet pretrain-0001.tar device.tar values.tar "
        "attestation/evaluations.tar 000000.tar retrieval.tar é.tar "
    ),
    "mini": ("mini-0.tar "),
}


@pytest.mark.parametrize("split", NAMES)
def test_splits_by_name(split: str | None):
    found = {name: split_of_file(PurePath(name), "mini") for name in NAMES[split].split()}
    assert found == dict.fromkeys(found, split)


def write_tar(path: Path, caption: str) -> None:
    write_shard(path, [{"__key__": path.stem, "png": PICTURE, "txt": caption.encode()}])


def write_table(path: Path, caption: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"image": PICTURE, "caption": caption}]), path)


def captions(out: Path, split: str = "train") -> list[str]:
    return [messages[-1]["content"] for messages, _ in read(out, split).values()]


@pytest.mark.parametrize(
    ("form", "ending", "write"),
    [("webdataset", "tar", write_tar), ("parquet", "parquet", write_table)],
)
def test_files_go_to_the_split_that_their_names_say(tmp_path: Path, form, ending, write):
    source = tmp_path / "source"
    for name in ("train-0", "train-1", "deep/val-0", "test/0000"):
        write(source / f"{name}.{ending}", name)
    (source / "info.json").write_text("{}")
    summary = run(form, source, tmp_path / "out")
    assert captions(tmp_path / "out") == ["train-0", "train-1"]
    assert summary.notes == [
        "took 2 files of train, left those of validation (1), test (1), such as "
        f"deep/val-0.{ending}",
        "files that are not read: 1 .json",
    ]
    run(form, source, tmp_path / "out", split="dev")
    assert captions(tmp_path / "out", "dev") == ["deep/val-0"]
    with pytest.raises(DataError, match=r"train \(2\), .*none is heldout.*--from-split test, "):
        run(form, source, tmp_path / "out", split="heldout")
    run(form, source, tmp_path / "out", split="heldout", from_split="val")
    assert captions(tmp_path / "out", "heldout") == ["deep/val-0"]
    assert len(captions_of_all(form, source, tmp_path)) == 4
    with pytest.raises(DataError, match=r"none is train\. Say which .* --from-split validation"):
        run(form, source / "deep" / f"val-0.{ending}", tmp_path / "one")
    with pytest.raises(DataError, match=r"none is train\. Say which to take: --from-split test"):
        run(form, source / "test", tmp_path / "one")
    run(form, source / "test", tmp_path / "one", from_split="test")
    write(source / f"extra.{ending}", "extra")
    with pytest.raises(DataError, match=r"extra\.\w+ says none.*--from-split none"):
        run(form, source, tmp_path / "two")
    run(form, source, tmp_path / "two", from_split="none")
    assert captions(tmp_path / "two") == ["extra"]


def captions_of_all(form: str, source: Path, tmp_path: Path) -> list[str]:
    summary = run(form, source, tmp_path / "all", from_split="all")
    assert summary.notes[0] == "took the files of all splits: train (2), validation (1), test (1)"
    return captions(tmp_path / "all")


def test_names_that_only_look_like_splits_are_all_taken(tmp_path: Path):
    names = ["training_data", "contest-1", "latest", "trainer", "pretrain-0001", "device"]
    for name in names:
        write_tar(tmp_path / "source" / f"{name}.tar", name)
    summary = run("webdataset", tmp_path / "source", tmp_path / "out")
    assert captions(tmp_path / "out") == sorted(names) and summary.notes == []


def write_files(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_pictures_by_folders_of_splits_and_what_is_left_out(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for split in ("train", "test"):
        for name in ("dog/1.jpg", "cat/test-2.PNG", "cat/3.jfif"):
            files[f"{split}/{name}"] = PICTURE
            ending = "TXT" if split == "train" else "caption"
            files[f"{split}/{PurePath(name).with_suffix('')}.{ending}"] = name
    files |= {"train/alone.txt": "No picture.", "readme.md": "", "__MACOSX/train/._1.jpg": b"?"}
    files |= {"train/.thumb.jpg": PICTURE, "train/lonely.webp": PICTURE, "train/clip.mp4": b"?"}
    folder = write_files(tmp_path / "in", files)
    summary = run("captions-folder", folder, tmp_path / "out")
    assert sorted(captions(tmp_path / "out")) == ["cat/3.jfif", "cat/test-2.PNG", "dog/1.jpg"]
    assert list(rejected(tmp_path / "out")) == ["train/lonely.webp"]
    assert summary.notes == [
        "took 4 pictures of train, left those of test (3), such as test/cat/3.jfif",
        "texts without a picture of their name: 1, such as train/alone.txt",
        "files that are not read: 2 hidden, 1 .md, 1 .mp4",
    ]
    run("captions-folder", folder, tmp_path / "out", split="test")
    assert len(captions(tmp_path / "out", "test")) == 3


LISTS = {
    "comma": ("metadata.csv", 'file_name,text\n1.png,"A cat, ""big"""\n2.png,A dog\nx.png,No\n'),
    "mark": ("metadata.csv", "\ufeffText;File_Name\r\nA cat, \"big\";1.png\r\nA dog;2.png\r\n"
             "No;x.png"),
    "tab": ("captions.tsv", 'file_name\tcaption\n1.png\t"A cat, ""big"""\n2.png\tA dog\nx.png\tNo'),
    "lines": ("a/metadata.jsonl", '{"file_name": "../1.png", "text": "A cat, \\"big\\""}\n'
              '{"file_name": "../2.png", "text": "A dog"}\n{"file_name": "x.png", "text": "No"}'),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*LISTS, "parquet", "utf-16"])
def test_lists_of_captions(tmp_path: Path, kind: str):
    folder = write_files(tmp_path / "in", dict.fromkeys(("1.png", "2.png", "3.png"), PICTURE))
    rows = [{"file_name": "1.png", "text": 'A cat, "big"'}, {"file_name": "2.png", "text": "A dog"}]
    if kind == "parquet":
        pq.write_table(
            pa.Table.from_pylist([*rows, {"file_name": "x"}]), folder / "metadata.parquet"
        )
    else:
        name, content = LISTS["mark" if kind == "utf-16" else kind]
        write_files(folder, {name: content.encode("utf-16-le" if kind == "utf-16" else "utf-8")})
    summary = run("captions-folder", folder, tmp_path / "out")
    assert captions(tmp_path / "out") == ['A cat, "big"', "A dog"]
    assert [reason for reason, _ in rejected(tmp_path / "out").values()] == ["missing_image"]
    assert summary.notes == ["pictures that no list names: 1, such as 3.png"]


def test_lists_of_splits_and_rows_that_are_wrong(tmp_path: Path):
    files: dict[str, bytes | str] = {
        f"{split}/{n}.png": PICTURE for split in ("train", "val") for n in "12"
    }
    for split in ("train", "val"):
        files[f"{split}/metadata.csv"] = f"file_name,text\n1.png,{split} 1\n2.png,{split} 2\n"
    files["train/metadata.csv"] += (
        "1.png,too,many\n../val/1.png,inside\n../../1.png,out\n1.png,\udcff"
    )
    folder = tmp_path / "in"
    write_files(
        folder, {k: v if isinstance(v, bytes) else os.fsencode(v) for k, v in files.items()}
    )
    run("captions-folder", folder, tmp_path / "out")
    assert captions(tmp_path / "out") == ["train 1", "train 2", "inside"]
    found = rejected(tmp_path / "out")
    assert [reason for reason, _ in found.values()] == ["fields", "missing_image", "text"]
    assert list(found) == [f"train/metadata.csv line {n}" for n in (4, 6, 7)]
    write_files(folder, {"train/metadata.jsonl": "{}"})
    with pytest.raises(DataError, match=r"has both metadata\.csv and metadata\.jsonl"):
        run("captions-folder", folder, tmp_path / "other")
    (folder / "train" / "metadata.jsonl").unlink()
    write_files(folder, {"train/metadata.csv": "picture,text\n1.png,a"})
    with pytest.raises(DataError, match=r"none of its columns \(picture, text\)"):
        run("captions-folder", folder, tmp_path / "other")


def test_texts_beside_pictures_that_leave_open_what_is_meant(tmp_path: Path):
    folder = write_files(tmp_path, {
        "a.png": PICTURE, "a.txt": "One.", "a.caption": "Two.",
        "b.png": PICTURE, "b.json": '{"width": 3}', "b.txt": "B.",
        "c.png": PICTURE, "c.json": '{"question": "What?", "answer": "C."}',
        "d.png": PICTURE, "d.png.txt": "D.", "e.png": PICTURE, "e.json": "{",
    })  # fmt: skip
    run("captions-folder", folder, tmp_path.with_name("out_texts"))
    assert captions(tmp_path.with_name("out_texts")) == ["B.", "C.", "D."]
    reasons = {n: r for n, (r, _) in rejected(tmp_path.with_name("out_texts")).items()}
    assert reasons == {"a.png": "duplicate", "e.png": "json"}


def test_rows_that_say_their_split_and_columns_of_one_name(tmp_path: Path):
    rows = "1.png,one,train\n2.png,two,TEST\n3.png,three,val\n"
    pictures: dict[str, bytes | str] = dict.fromkeys(("1.png", "2.png", "3.png"), PICTURE)
    folder = write_files(tmp_path / "in", pictures | {"metadata.csv": f"image,text,split\n{rows}"})
    run("captions-folder", folder, tmp_path / "out")
    assert captions(tmp_path / "out") == ["one"]
    run("captions-folder", folder, tmp_path / "out", split="test")
    assert captions(tmp_path / "out", "test") == ["two"]
    write_files(folder, {"metadata.csv": "image,text,text\n1.png,a,b\n"})
    with pytest.raises(DataError, match="two of its columns are called text"):
        run("captions-folder", folder, tmp_path / "other")


def test_links_in_a_circle_beside_shards(tmp_path: Path):
    write_tar(tmp_path / "in" / "a.tar", "A.")
    (tmp_path / "in" / "circle.tar").symlink_to("circle.tar")
    (tmp_path / "in" / "again.tar").symlink_to("a.tar")
    summary = run("webdataset", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == ["A."] and summary.reasons == {"shard": 1}
    assert summary.notes[-1].endswith("again.tar, a link to a file that is read")
