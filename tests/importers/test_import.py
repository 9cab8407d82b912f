"""Every format becomes shards that index, with nothing lost in silence and no byte changed."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.importing import read, rejected, run, stored, turns
from helpers.shard_writing import as_json, draw_image, write_shard
from PIL import Image

from nvlm.errors import DataError

PICTURES = [draw_image(40 + i, 30, i, "JPEG" if i % 2 else "PNG") for i in range(12)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, data in enumerate(PICTURES):
        (folder / "deep" / f"{number}.img").write_bytes(data)
    return folder


def llava_entries() -> list[dict]:
    return [
        {"id": "one", "image": "deep/0.img", "conversations": turns("<image>\nWhat?")},
        {"id": "v1.5/two", "images": ["deep/1.img", "deep/2.img"],
         "conversations": turns("<image> or <image>?") + turns("Sure?")},
        {"id": "unmarked", "image": "deep/3.img", "conversations": turns("What?")},
        {"id": 4, "conversations": turns("1 + 1?", "2")},
        {"conversations": turns("No id?")},
        {"id": "one", "image": "deep/5.img", "conversations": turns("<image>\nAgain?")},
    ]  # fmt: skip


HOSTILE = {
    "missing_image": {"id": "a", "image": "deep/99.img", "conversations": turns("<image>")},
    "image_format": {"id": "b", "image": "notes.txt", "conversations": turns("<image>")},
    "image_count": {"id": "c", "image": "deep/0.img", "conversations": turns("<image><image>")},
    "messages": {
        "id": "d",
        "messages": [{"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}],
    },
    "role_order": {"id": "e", "conversations": turns("a")[::-1]},
    "text": {"id": "f", "conversations": turns("a", " ")},
    "fields": [1, 2],
    "duplicate": {"id": "one", "image": "deep/0.img", "conversations": turns("<image>\nWhat?")},
}


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_llava(tmp_path: Path, pictures: Path, kind: str):
    source = tmp_path / f"data.{kind}"
    entries = llava_entries()
    (pictures / "notes.txt").write_text("no picture")
    everything = entries + list(HOSTILE.values())
    if kind == "json":
        source.write_text(json.dumps(everything))
    else:
        lines = [json.dumps(entry) for entry in everything]
        source.write_text("\n\n".join([*lines, '{"id": "cut', '{"id": NaN}', ""]))
    summary = run("llava-json", source, tmp_path / "out", images=pictures)
    samples = read(tmp_path / "out")
    assert list(samples) == ["one", "v1_5/two", "unmarked", "4", "000000004", "one-2"]
    assert samples["one"] == (
        [{"role": "user", "content": "<image>\nWhat?"},
         {"role": "assistant", "content": "An answer."}],
        [PICTURES[0]],
    )  # fmt: skip
    assert samples["v1_5/two"][1] == [PICTURES[1], PICTURES[2]]
    assert len(samples["v1_5/two"][0]) == 4
    assert samples["unmarked"][0][0]["content"] == "<image>\nWhat?"
    assert samples["4"][1] == []
    found = [reason for reason, _ in rejected(tmp_path / "out").values()]
    more = ["json", "fields"] if kind == "jsonl" else []
    assert found == [*HOSTILE, *more]
    assert summary.num_samples == 6 and summary.num_images == 5
    assert summary.num_rejected == len(found) == sum(summary.reasons.values())


@pytest.mark.parametrize("mark", ["<video>", "<image>", ""])
def test_llava_videos(tmp_path: Path, mark: str):
    (tmp_path / "clip.MP4").write_bytes(b"a video")
    entry = {"id": "v", "video": "clip.MP4", "conversations": turns(f"{mark}\nWhat?".strip())}
    gone = entry | {"id": "g", "video": "gone.mp4"}
    other = entry | {"id": "o", "video": "data.json"}
    (tmp_path / "data.json").write_text(json.dumps([entry, gone, other]))
    run("llava-json", tmp_path / "data.json", tmp_path / "out")
    (content,) = stored(tmp_path / "out").values()
    assert content["messages"][0]["content"] == "<video>\nWhat?"
    (shard,) = (tmp_path / "out" / "train" / "it").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert tar.extractfile("v.mp4").read() == b"a video"
    assert rejected(tmp_path / "out")["entry 1"][0] == "missing_video"
    assert rejected(tmp_path / "out")["entry 2"][0] == "video"


def test_rejects_name_the_place_and_what_is_wrong(tmp_path: Path, pictures: Path):
    source = tmp_path / "data.jsonl"
    good, missing = llava_entries()[0], HOSTILE["missing_image"]
    source.write_text("\n".join(map(json.dumps, [good, missing])))
    run("llava-json", source, tmp_path / "out", images=pictures)
    ((name, (reason, detail)),) = rejected(tmp_path / "out").items()
    assert (name, reason) == ("line 2", "missing_image")
    assert str(pictures / "deep" / "99.img") in detail


def test_captions_beside_pictures(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for name, data in [("a/x.png", PICTURES[0]), ("b.v2.jpg", PICTURES[1]), ("c.jpg", b"junk")]:
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text(f"\ufeffA caption of {name}.\n")
    (folder / "lonely.jpg").write_bytes(PICTURES[3])
    run("captions-folder", folder, tmp_path / "out")
    assert stored(tmp_path / "out") == {
        "a/x": {"caption": "A caption of a/x.png."},
        "b_v2": {"caption": "A caption of b.v2.jpg."},
    }
    samples = read(tmp_path / "out")
    assert [images for _, images in samples.values()] == [[PICTURES[0]], [PICTURES[1]]]
    reasons = {name: reason for name, (reason, _) in rejected(tmp_path / "out").items()}
    assert reasons == {"c.jpg": "image_format", "lonely.jpg": "missing_caption"}


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl"])
def test_captions_in_a_list(tmp_path: Path, pictures: Path, name: str):
    lines = [
        {"file_name": "deep/0.img", "text": "A caption."},
        {"file_name": "deep/1.img", "caption": ["One.", "Another."]},
        {"file_name": "deep/2.img", "question": "What?", "answer": "This."},
        {"file_name": "deep/99.img", "text": "Gone."},
        {"text": "No name."},
        {"file_name": 5, "text": "No text as a name."},
        {"file_name": ".", "text": "A folder."},
    ]
    (pictures / name).write_text("\n".join([*map(json.dumps, lines), "{"]))
    run("captions-folder", pictures, tmp_path / "out")
    assert list(stored(tmp_path / "out").values()) == [
        {"caption": "A caption."},
        {"caption": ["One.", "Another."]},
        {"question": "What?", "answers": ["This."]},
    ]
    found = rejected(tmp_path / "out")
    assert [found[f"line {n}"][0] for n in range(4, 9)] == ["missing_image"] * 4 + ["json"]


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_foreign_tars(tmp_path: Path, compression: str):
    source = tmp_path / "source"
    samples = [
        {"__key__": "000", "jpg": PICTURES[1], "txt": b"A caption.", "json": b'{"width": 41}'},
        {"__key__": "001", "png": PICTURES[0], "json": json.dumps(
            {"conversations": turns("<image>\nWhat?")}).encode()},
        {"__key__": "002", "page10.jpg": PICTURES[3], "page09.jpg": PICTURES[5],
         "page" + "9" * 5000 + ".jpg": PICTURES[7], "json": json.dumps(
            {"conversations": turns("<image><image><image>")}).encode()},
        {"__key__": "003", "jpg": PICTURES[1]},
        {"__key__": "004", "txt": b"Only text is not a caption."},
    ]  # fmt: skip
    for number in range(2):
        path = source / f"{number}.tar{compression}"
        path.parent.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(path), encoder=False) as writer:
            for sample in samples:
                writer.write(sample)
    run("webdataset", source, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert list(samples) == [f"{tar:06d}/{key}" for tar in (0, 1) for key in ("000", "001", "002")]
    assert samples["000001/000"][0][1]["content"] == "A caption."
    assert samples["000000/002"][1] == [PICTURES[5], PICTURES[3], PICTURES[7]]
    reasons = {name: reason for name, (reason, _) in rejected(tmp_path / "out").items()}
    assert reasons[f"0.tar{compression}/003"] == "missing_member"
    assert reasons[f"1.tar{compression}/004"] == "image_count"


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_a_damaged_tar_keeps_what_came_before(tmp_path: Path, compression: str):
    samples = [{"__key__": f"{n}", "jpg": PICTURES[1], "txt": b"Words."} for n in range(9)]
    path = write_shard(tmp_path / "source" / "a.tar", samples)
    whole = path.read_bytes()
    path.unlink()
    name = f"a.tar{compression}"
    # Inside a member's content, inside a header, and between two members.
    for number, size in enumerate((len(whole) // 2 + 700, len(whole) // 2 - 100, 512 * 30)):
        damaged = gzip.compress(whole[:size]) if compression else whole[:size]
        (path.parent / name).write_bytes(damaged)
        out = tmp_path / f"out{number}"
        run("webdataset", path.parent, out)
        assert 2 <= len(read(out)) < 9
        assert rejected(out)[name][0] == "shard"


@pytest.mark.parametrize(
    ("turns", "unused"),
    [
        ([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}], {}),
        (["What?", {"value": "This."}], {}),
        (
            [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}] * 3,
            {"json[2...]": 1},
        ),
    ],
)
def test_an_energon_field_map_that_reads_inside_a_list(tmp_path: Path, turns: list, unused: dict):
    source = tmp_path / "source"
    sample = {"__key__": "a", "jpg": PICTURES[1], "json": json.dumps(turns).encode()}
    write_shard(source / "a.tar", [sample])
    (source / ".nv-meta").mkdir()
    (source / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [a.tar]}")
    question = "json[0][value],json[0]" if isinstance(turns[0], dict) else "json[0]"
    (source / ".nv-meta" / "dataset.yaml").write_text(
        "sample_type: {__module__: megatron.energon, __class__: VQASample}\n"
        f"field_map: {{image: jpg, context: '{question}', answers: 'json[1][value]'}}\n"
    )
    summary = run("energon", source, tmp_path / "out")
    (found,) = stored(tmp_path / "out").values()
    assert found == {"kind": "vqa", "question": "What?", "answers": ["This."]}
    assert summary.unused_fields == unused


def test_a_prepared_energon_folder(tmp_path: Path):
    source = tmp_path / "source"
    answers = json.dumps({"q": "What?", "a": ["This.", "That."], "w": [3, 1]}).encode()
    for number in range(3):
        keys = [f"{number}{n}" for n in range(2)]
        samples = [{"__key__": key, "jpg": PICTURES[1], "qa.json": answers} for key in keys]
        write_shard(source / f"part-{number}.tar", samples)
    (source / ".nv-meta").mkdir()
    (source / ".nv-meta" / "split.yaml").write_text(
        "split_parts: {train: ['part-{0..1}.tar'], val: [part-2.tar]}\nexclude: [part-0.tar/01]\n"
    )
    (source / ".nv-meta" / "dataset.yaml").write_text(
        "sample_type: {__module__: megatron.energon, __class__: VQASample}\n"
        "field_map: {image: jpg, context: 'qa.json[q]', answers: 'qa.json[a]', "
        "answer_weights: 'qa.json[w]'}\n"
    )
    run("energon", source, tmp_path / "out")
    found = stored(tmp_path / "out")
    assert list(found) == ["000000/00", "000001/10", "000001/11"]
    expected = {"kind": "vqa", "question": "What?", "answers": ["This.", "That."]}
    assert found["000000/00"] == expected | {"answer_weights": [3, 1]}
    with pytest.raises(DataError, match="no split 'test'"):
        run("energon", source, tmp_path / "out", split="test")
    with pytest.raises(DataError, match="use --format energon"):
        run("webdataset", source, tmp_path / "other")


ROWS = [
    {"id": "r0", "image": {"bytes": PICTURES[0], "path": "0.png"}, "conversations": turns("A?")},
    {"id": "r1", "image": {"bytes": None, "path": "deep/1.img"}, "conversations": turns("B?")},
    {"id": "r1", "image": {"bytes": PICTURES[2], "path": None}, "conversations": turns("C?")},
    {"id": "r3", "image": {"bytes": b"junk!", "path": None}, "conversations": turns("D?")},
    {"id": "r4", "image": None, "conversations": turns("E?")},
    {"id": "r5", "image": {"bytes": None, "path": "99.img"}, "conversations": turns("F?")},
]


def check_rows(out: Path, reasons: list[str]) -> None:
    samples = read(out)
    assert list(samples) == ["r0", "r1", "r1-2", "r4"]
    assert [images for _, images in samples.values()] == [
        [PICTURES[0]], [PICTURES[1]], [PICTURES[2]], [],
    ]  # fmt: skip
    assert samples["r1"][0][0]["content"] == "<image>\nB?"
    assert [reason for reason, _ in rejected(out).values()] == reasons


@pytest.mark.parametrize("group_size", [1, 4, 100])
def test_parquet(tmp_path: Path, pictures: Path, group_size: int):
    source = tmp_path / "source" / "data-0.parquet"
    source.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), source, row_group_size=group_size)
    run("parquet", source.parent, tmp_path / "out", images=pictures, samples_per_shard=4)
    check_rows(tmp_path / "out", ["image_format", "missing_image"])


def test_parquet_with_lists_of_bytes_and_other_texts(tmp_path: Path):
    source = tmp_path / "data.parquet"
    rows = [
        {"images": [PICTURES[0], PICTURES[1]], "texts": [{"user": "A?", "assistant": "B."}] * 2},
        {"images": [PICTURES[2]], "texts": [{"user": "C?", "assistant": "D."}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), source)
    run("parquet", source, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert samples["000000000"][1] == PICTURES[:2]
    assert [m["content"] for m in samples["000000000"][0]] == [
        "<image>\n<image>\nA?", "B.", "A?", "B.",
    ]  # fmt: skip


def test_chat_messages_in_typed_parts(tmp_path: Path):
    source = tmp_path / "data.parquet"
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "That."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    pq.write_table(pa.Table.from_pylist([{"image": PICTURES[0], "messages": messages}]), source)
    run("parquet", source, tmp_path / "out")
    ((found, _),) = read(tmp_path / "out").values()
    assert [message["content"] for message in found] == ["<image>\nWhat?", "That."]


@pytest.mark.parametrize("splits", [False, True])
def test_hf_datasets(tmp_path: Path, splits: bool):
    features = datasets.Features(
        id=datasets.Value("string"),
        image=datasets.Image(decode=False),
        conversations=datasets.List(
            {"from": datasets.Value("string"), "value": datasets.Value("string")}
        ),
    )
    # `save_to_disk` takes the bytes of image files into the folder, and fails without them.
    rows = [row | {"image": {"bytes": PICTURES[1]}} if row["id"] == "r1" else row for row in ROWS]
    rows[2] = ROWS[2]
    data = datasets.Dataset.from_list(rows[:-1], features=features)
    data = data.cast_column("image", datasets.Image())
    if splits:
        data = datasets.DatasetDict(train=data, test=data.select([0]))
    data.save_to_disk(str(tmp_path / "source"))
    run("hf-datasets", tmp_path / "source", tmp_path / "out")
    check_rows(tmp_path / "out", ["image_format"])
    if splits:
        with pytest.raises(DataError, match="no split val, only train, test; say which"):
            run("hf-datasets", tmp_path / "source", tmp_path / "out", split="val")


def test_images_keep_their_bytes_and_get_the_extension_of_their_content(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    pixels = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
    written = {}
    for extension, kind in kinds.items():
        file = io.BytesIO()
        pixels.save(file, kind)
        written[extension] = file.getvalue()
        (folder / f"{extension}.jpg").write_bytes(file.getvalue())
        (folder / f"{extension}.txt").write_text("Black.")
    run("captions-folder", folder, tmp_path / "out")
    (shard,) = (tmp_path / "out" / "train" / "it").glob("*.tar")
    with tarfile.open(shard) as tar:
        images = {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith("json")}
    assert images == {f"{extension}.0.{extension}": data for extension, data in written.items()}


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("nonsense", "x", "--format nonsense: expected one of llava-json"),
        ("llava-json", "[{]", "data: not readable as JSON"),
        ("llava-json", "[]", "data: no usable sample among 0: it is empty"),
        ("llava-json", " \n", "data is empty; expected a JSON list of samples"),
        ("llava-json", '{\n"rows": [1]}', "data is one JSON object, of rows; expected a JSON list"),
        ("llava-json", "\0\xff".encode("latin-1"), "data: not text in UTF-8"),
        ("llava-json", '[{"id": 1}, 5]', "among 2: fields 2\n  entry 0: no conversation"),
        ("captions-folder", "x", "data: expected a folder of pictures"),
        ("energon", "x", "data has no folder .nv-meta"),
        ("parquet", "x", "data: not readable as parquet"),
        ("webdataset", "x" * 2000, "no usable sample among 1: shard 1"),
        ("hf-datasets", "x", "data: not a folder of `save_to_disk`"),
    ],
)
def test_unusable_sources_are_one_clear_error(tmp_path: Path, form, content, message):
    source = tmp_path / "data"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        run(form, source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar*"))
    assert not (tmp_path / "out" / "train" / "it").exists()


def test_parquet_without_text_says_which_columns_there_are(tmp_path: Path):
    pq.write_table(pa.table({"pixels": [b"x"], "label": [3]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"none of its columns \(pixels, label\) has text"):
        run("parquet", tmp_path / "a.parquet", tmp_path / "out")


@pytest.mark.parametrize("form", ["parquet", "hf-datasets"])
def test_images_are_not_left_out_for_their_columns_name(tmp_path: Path, form: str):
    table = pa.table({"pics": [[{"bytes": b"x", "path": None}]], "text": ["Words."]})
    if form == "parquet":
        pq.write_table(table, tmp_path / "source")
    else:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "source"))
    with pytest.raises(DataError, match=r"its field pics holds bytes, .*rename the field to image"):
        run(form, tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("form", ["parquet", "llava-json"])
def test_images_are_not_left_out_for_the_name_of_the_field_that_names_them(tmp_path, form: str):
    rows = [
        {"id": "1.jpg", "scene": "x.jpg", "question": "What?", "answer": "That."},
        {"id": "2.jpg", "url": "https://a.b/c.jpg", "question": "Which?", "answer": "See d.jpg"},
    ]
    source = tmp_path / "source.json"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.write_text(json.dumps(rows))
    assert run(form, source, tmp_path / "out").num_samples == 1
    ((reason, detail),) = rejected(tmp_path / "out").values()
    assert reason == "missing_image"
    assert "its field scene is 'x.jpg'; rename the field to image" in detail


def text_column(*values: bytes) -> pa.Array:
    """Texts that nobody has checked to be UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())


@pytest.mark.parametrize("form", ["parquet", "hf-datasets"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_rows_with_values_that_are_no_text(tmp_path: Path, form: str, with_ids: bool):
    questions = text_column(b"One?", b"\xff\xfe", b"Three?", b"Four?")
    answers = [b"1", None, None, None], [None, None, datetime.date(2020, 1, 1), None]
    columns = {"question": questions, "answer": answers[0], "label": answers[1]}
    columns["image"] = [PICTURES[0]] * 4
    if with_ids:
        columns["id"] = text_column(b"a", b"b", b"c", b"d")
    table = pa.table(columns)
    (tmp_path / "source").mkdir()
    if form == "parquet":
        pq.write_table(table, tmp_path / "source" / "t.parquet")
    else:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "source"))
    with pytest.raises(DataError) as caught:
        run(form, tmp_path / "source", tmp_path / "out")
    for part in ("among 4: text 3, fields 1",
                 "row 0: b'1' is bytes, expected text", "row 1: not UTF-8",
                 "row 2: datetime.date(2020, 1, 1) is date, expected text"):  # fmt: skip
        assert part in str(caught.value)


def test_a_damaged_part_of_a_parquet_file(tmp_path: Path):
    rows = [{"image": PICTURES[0], "caption": f"Caption {n}."} for n in range(9)]
    source = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=3, compression="none")
    group = pq.read_metadata(source).row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content = bytearray(source.read_bytes())
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    source.write_bytes(content)
    summary = run("parquet", source, tmp_path / "out", samples_per_shard=3)
    assert list(read(tmp_path / "out")) == [f"{n:09d}" for n in (0, 1, 2, 6, 7, 8)]
    assert summary.reasons == {"shard": 1}
    assert "what follows in row groups [1] cannot be read" in str(rejected(tmp_path / "out"))


def test_datasets_are_not_decoded(tmp_path: Path):
    """Neither columns that are not read, nor images."""
    image = {"bytes": PICTURES[1], "path": None}
    rows = [{"id": n, "image": image, "mask": {"bytes": b"junk"}, "caption": "A."} for n in "ab"]
    data = datasets.Dataset.from_list(rows)
    data = data.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    data.save_to_disk(str(tmp_path / "source"))
    run("hf-datasets", tmp_path / "source", tmp_path / "out")
    assert [images for _, images in read(tmp_path / "out").values()] == [[PICTURES[1]]] * 2
    (tmp_path / "source" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="source: not a folder of `save_to_disk`: KeyError"):
        run("hf-datasets", tmp_path / "source", tmp_path / "other")


def test_links_in_folders(tmp_path: Path):
    """Linked folders are read, also one that leads back; a link to nowhere is a reject."""
    folder, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    folder.mkdir()
    with pytest.raises(DataError, match=r"source has no pictures \(jpg, png"):
        run("captions-folder", folder, tmp_path / "out")
    elsewhere.mkdir()
    (elsewhere / "a.jpg").write_bytes(PICTURES[1])
    (elsewhere / "a.txt").write_text("A.")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "back").symlink_to(folder)
    (folder / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "nowhere.txt").write_text("B.")
    run("captions-folder", folder, tmp_path / "out")
    assert list(read(tmp_path / "out")) == ["linked/a"]
    assert rejected(tmp_path / "out")["nowhere.jpg"][0] == "missing_image"


def test_keys_that_differ_only_in_what_keys_do_not_have(tmp_path: Path):
    names = ["a b", "a_b", "d.v1/\u4e2d", "!", "?", "x" * 400, "y" + "x" * 400]
    samples = [{"__key__": name, "txt": b"Words.", "jpg": PICTURES[1]} for name in names]
    write_shard(tmp_path / "source" / "a.tar", [*samples, samples[0]])
    run("webdataset", tmp_path / "source", tmp_path / "out")
    keys = ["a_b", "a_b-2", "d_v1/\u4e2d", "_", "_-2", "x" * 200, "x" * 200 + "-2"]
    assert list(read(tmp_path / "out")) == keys
    assert [reason for reason, _ in rejected(tmp_path / "out").values()] == ["duplicate"]


def test_foreign_tars_with_videos_and_long_texts(tmp_path: Path):
    text = as_json(("user", "What?"), ("assistant", "That."))
    samples = [
        {"__key__": "clip", "json": text, "mp4": b"a video"},
        {"__key__": "both", "json": text, "mp4": b"a video", "jpg": PICTURES[1]},
        {"__key__": "long", "txt": b"a" * (5 << 20), "jpg": PICTURES[1]},
    ]
    write_shard(tmp_path / "source" / "a.tar", samples)
    run("webdataset", tmp_path / "source", tmp_path / "out")
    (content,) = stored(tmp_path / "out").values()
    assert content["messages"][0]["content"] == "<video>\nWhat?"
    found = {name: reason for name, (reason, _) in rejected(tmp_path / "out").items()}
    assert found == {"a.tar/both": "video", "a.tar/long": "text"}
