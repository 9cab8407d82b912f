"""Where samples lie: folders, shards, nested blends, and folders prepared for Energon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import read_in_energon
from helpers.shard_writing import draw_image, make_sample, write_shard

from nvlm.config.schema import SourceConfig
from nvlm.data.index.source_index import open_indexes
from nvlm.data.samples.text_members import read_fields
from nvlm.data.shards.sources import find_sources, flatten_blend, unread_files
from nvlm.errors import DataError

IMAGE = draw_image(40, 30)


def test_paths_of_sources(make_config, shards: Path, tmp_path: Path):
    write_shard(tmp_path / "else" / "x.tar", [make_sample("x", "Hi", "Ho", [])])
    other = tmp_path / "else"
    blend = (
        f"{{elsewhere: {{path: {other}}}, one: {{path: {other / 'x.tar'}}}, "
        "renamed: {path: pairs}, text: 2}"
    )
    sources = find_sources(make_config(f"data.blend={blend}"))
    assert {name: [p.name for p in source.shards] for name, source in sources.items()} == {
        "elsewhere": ["x.tar"], "one": ["x.tar"], "renamed": ["pairs-000000.tar"],
        "text": ["text-000000.tar"],
    }  # fmt: skip
    indexes = open_indexes(make_config(f"data.blend={blend}"))
    assert [len(index) for index in indexes] == [1, 1, 10, 15]


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ("{a: {path: nowhere}}", r"source 'a': its path .*train/nowhere does not exist"),
        ("{a: {path: empty}}", r"source 'a': its path .*train/empty has no \.tar files"),
        (
            "{text: 1, x: 1, a: 1, g: {blend: {b: 1}}}",
            "no source 'a' under .*, which has text; nor have these sources any shards: b, x$",
        ),
        ("{zipped: 1}", r"compressed shards such as a\.tar\.gz"),
        ("{a: {blend: {text: 1}}, b: {blend: {text: 1}}}", "source 'text' appears twice"),
    ],
)
def test_sources_that_cannot_be_found(make_config, tmp_path: Path, blend: str, message: str):
    folder = tmp_path / "data" / "train"
    write_shard(folder / "text" / "a.tar", [make_sample("x", "Hi", "Ho", [])])
    (folder / "empty").mkdir()
    (folder / "zipped").mkdir()
    (folder / "zipped" / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        find_sources(make_config(f"data.root={tmp_path / 'data'}", f"data.blend={blend}"))


def test_nested_blends_multiply_shares_and_hand_down_settings():
    inner = SourceConfig(
        weight=3, path="group", prompts="vqa", max_num_tiles=4, loss_weight=2,
        blend={"a": 1, "b": SourceConfig(weight=2, path="bb", prompts="ocr", loss_weight=0.5)},
    )  # fmt: skip
    leaves = flatten_blend({"group": inner, "c": 1.0})
    assert {name: share for name, (share, _) in leaves.items()} == pytest.approx(
        {"a": 0.25, "b": 0.5, "c": 0.25}
    )
    a, b = leaves["a"][1], leaves["b"][1]
    assert (a.path, a.prompts, a.max_num_tiles, a.loss_weight) == ("group/a", "vqa", 4, 2)
    assert (b.path, b.prompts, b.max_num_tiles, b.loss_weight) == ("group/bb", "ocr", 4, 1)
    assert leaves["c"][1] == SourceConfig()


def prepare(folder: Path, dataset: dict, samples: list[dict], split: dict | None = None) -> None:
    """As `energon prepare` leaves a folder."""
    write_shard(folder / "shards" / "s_000.tar", samples)
    write_shard(folder / "shards" / "s_001.tar", [])
    meta = folder / ".nv-meta"
    meta.mkdir()
    split = split or {"split_parts": {"train": ["shards/s_{000..001}.tar"], "val": []}}
    (meta / "split.yaml").write_text(yaml.safe_dump(split))
    (meta / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    (folder / "shards" / "s_000.tar.idx").write_bytes(bytes(16))


def sample_type(name: str, **field_map: str) -> dict:
    declared = {"__module__": "megatron.energon", "__class__": name}
    return {"sample_type": declared, "field_map": field_map}


QUESTION = {"ask": {"text": "What?"}, "replies": ["a cat", "a dog"], "weights": [3, 1]}
# As a recipe for LLaVA's pretraining data writes them.
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
CHOICE = {"q": "What?", "options": ["cat", "dog"], "right": 1}
PREPARED = {
    "captions": (
        sample_type("CaptioningSample", image="jpg,png", caption="txt"),
        {"png": IMAGE, "txt": b"A cat."},
        ("caption", "A cat."),
    ),
    "captions inside a JSON": (
        sample_type("CaptioningSample", image="png", caption="json[captions][0]"),
        {"png": IMAGE, "json": json.dumps({"captions": ["A cat."]}).encode(), "txt": b"no"},
        ("caption", "A cat."),
    ),
    "questions": (
        sample_type("VQASample", image="png", context="json[ask][text]", answers="json[replies]",
                    answer_weights="json[weights]"),
        {"png": IMAGE, "json": json.dumps(QUESTION).encode()},
        ("vqa", "a cat"),
    ),
    "questions in files": (
        sample_type("VQASample", image="image.png", context="question.txt", answers="answer.txt"),
        {"image.png": IMAGE, "question.txt": b"What?", "answer.txt": b"a cat"},
        ("vqa", "a cat"),
    ),
    "multiple choice": (
        sample_type("MultiChoiceVQASample", image="png", context="json[q]", choices="json[options]",
                    correct_choice_idx="json[right]"),
        {"png": IMAGE, "json": json.dumps(CHOICE).encode()},
        ("multiple_choice", "B"),
    ),
    "captions that are numbers": (
        sample_type("CaptioningSample", image="png", caption="json[n]"),
        {"png": IMAGE, "json": b'{"n": 42}'},
        ("caption", "42"),
    ),
    "questions that place their image": (
        sample_type("VQASample", image="png", context="json[0][value]", answers="json[1][value]"),
        {"png": IMAGE, "json": json.dumps(TURNS).encode()},
        ("vqa", "a cat"),
    ),
    "questions by their older name": (
        {"__module__": "megatron.energon", "__class__": "VQAWebdataset",
         "field_map": {"image": "png", "context": "json[ask][text]", "answers": "json[replies]"}},
        {"png": IMAGE, "json": json.dumps(QUESTION).encode()},
        ("vqa", "a cat"),
    ),
    "captions by their older name": (
        {"__module__": "megatron.energon", "__class__": "CaptioningWebdataset",
         "field_map": {"image": "png", "caption": "txt"}},
        {"png": IMAGE, "txt": b"A cat."},
        ("caption", "A cat."),
    ),
    "OCR by its older name": (
        {"__module__": "megatron.energon", "__class__": "OCRWebdataset",
         "field_map": {"image": "png", "text": "txt"}},
        {"png": IMAGE, "txt": b"EXIT"},
        ("ocr", "EXIT"),
    ),
    "OCR": (
        sample_type("OCRSample", image="png", text="txt"),
        {"png": IMAGE, "txt": b"EXIT"},
        ("ocr", "EXIT"),
    ),
    "crude JSON": (
        sample_type("CrudeWebdataset"),
        {"png": IMAGE, "json": json.dumps({"question": "What?", "answer": "a cat"}).encode()},
        ("vqa", "a cat"),
    ),
    "crude": (
        sample_type("CrudeWebdataset"),
        {"png": IMAGE, "txt": b"A cat."},
        ("caption", "A cat."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPARED)
def test_folders_prepared_for_energon_are_read_where_they_are(
    make_config, tmp_path: Path, name: str
):
    dataset, members, (kind, answer) = PREPARED[name]
    folder = tmp_path / "prepared"
    prepare(folder, dataset, [{"__key__": f"k{i}", **members} for i in range(3)])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (index,) = open_indexes(make_config(f"data.blend={{source: {{path: {folder}}}}}"))
    assert (len(index), index.rejected) == (3, [])
    assert index.kind(0) == kind
    assert (index.image_width[0], index.image_height[0]) == (40, 30)
    texts = {n: read(index.shard_path(1), where) for n, where in index.text_ranges(1).items()}
    assert index.parser.parse(texts, 1).variants[0][1] == answer
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_energon_reads_the_same_in_them(make_config, tmp_path: Path):
    """The text that Energon hands over is what our sample is made of."""
    names = [name for name in PREPARED if "crude" not in name]  # which Energon does not interpret
    folders = []
    for name in names:
        folders.append(tmp_path / name.replace(" ", "_"))
        dataset, members, _ = PREPARED[name]
        prepare(folders[-1], dataset, [{"__key__": f"k{i}", **members} for i in range(3)])
        (folders[-1] / "shards" / "s_001.tar").unlink()  # Energon refuses an empty one
    ran = subprocess.run(
        [sys.executable, read_in_energon.__file__, *map(str, folders)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    read_by_energon = json.loads(ran.stdout.splitlines()[-1])
    for name, folder, theirs in zip(names, folders, read_by_energon, strict=True):
        blend = f"data.blend={{{folder.name}: {{path: {folder}}}}}"
        (index,) = open_indexes(make_config(blend, "data.split=val"))
        assert [sample["key"] for sample in theirs] == [index.key(row) for row in range(len(index))]
        texts = {n: read(index.shard_path(1), where) for n, where in index.text_ranges(1).items()}
        ours = read_fields(texts, index.parser.field_map)
        renamed = {"question": "context", "correct": "correct_choice_idx"}
        for field, value in ours.items():
            if field != "kind":
                assert value == theirs[1][renamed.get(field, field)], (name, field)


def read(shard: Path, where) -> bytes:
    return shard.read_bytes()[where.offset : where.offset + where.size]


def test_every_type_that_energon_has_is_read_or_refused_by_name(make_config, tmp_path: Path):
    """By its name as a sample and as a data set, also with a sample loader."""
    code = "import megatron.energon as e; print(*(n for n in dir(e) if n.endswith('Webdataset')))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    types = {name.removesuffix("Webdataset") for name in ran.stdout.split()}
    assert len(types) == 12
    declared = [case[0].get("sample_type", case[0])["__class__"] for case in PREPARED.values()]
    read = {name.removesuffix("Webdataset").removesuffix("Sample") for name in declared}
    for short in sorted(types - {"Crude"}):
        for name in (f"{short}Sample", f"{short}Webdataset"):
            for more in ({"field_map": {"image": "jpg"}}, {"sample_loader": "x.py:f"}):
                if short in read and "field_map" in more:
                    continue
                folder = tmp_path / f"{name}-{next(iter(more))}"
                dataset = {"__module__": "megatron.energon", "__class__": name}
                dataset = dataset if name.endswith("Webdataset") else {"sample_type": dataset}
                prepare(folder, dataset | more, [{"__key__": "k", "jpg": IMAGE}])
                with pytest.raises(DataError, match=rf"dataset\.yaml: .*{short}Sample"):
                    open_indexes(make_config(f"data.blend={{source: {{path: {folder}}}}}"))


def test_a_metadataset_is_refused_by_name(make_config, tmp_path: Path):
    """A blend of Energon's: it is written in data.blend."""
    file = tmp_path / "blend.yaml"
    file.write_text("__module__: megatron.energon\n__class__: MetadatasetV2\nsplits: {}\n")
    with pytest.raises(DataError, match=r"blend\.yaml is a file of settings: .* Metadataset"):
        find_sources(make_config(f"data.blend={{source: {{path: {file}}}}}"))


def test_split_and_what_it_excludes(make_config, tmp_path: Path):
    folder = tmp_path / "prepared"
    split = {
        "split_parts": {"train": ["shards/s_{000..001}.tar"], "val": ["shards/s_001.tar"]},
        "exclude": ["shards/s_000.tar/k1"],
    }
    samples = [{"__key__": f"k{i}", "png": IMAGE, "txt": b"A cat."} for i in range(3)]
    prepare(folder, PREPARED["captions"][0], samples, split)
    (index,) = open_indexes(make_config(f"data.blend={{source: {{path: {folder}}}}}"))
    assert [index.key(row) for row in range(len(index))] == ["k0", "k2"]
    assert index.num_rejected == {}
    with pytest.raises(DataError, match=r"no split 'test' .*, only train, val"):
        find_sources(make_config(f"data.blend={{source: {{path: {folder}}}}}", "data.split=test"))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"sample_type": {"__class__": "SimilaritySample"}, "field_map": {"image": "jpg"}},
         "sample type SimilaritySample"),
        ({"sample_type": {"__class__": ["VQASample"]}, "field_map": {}}, r"sample type \['VQA"),
        ({"sample_type": {"__class__": "TextSample"}, "field_map": {1: "txt"}}, "not read: 1"),
        ({"sample_type": {"__class__": "VQASample"}, "sample_loader": "x.py:load"},
         "VQASample: its sample_loader is a Python function"),
        ({"__class__": "SimilarityInterleavedWebdataset", "field_map": {"images": "pth"}},
         "SimilarityInterleavedSample is not read: its images come from Python's own format"),
        (sample_type("ImageClassificationSample", image="jpg", label="cls"),
         "ImageClassificationSample is not read: it has a class, and no words"),
        (sample_type("InterleavedSample", sequence="pth"), "InterleavedSample is not read"),
        (sample_type("VQAOCRSample", image="jpg", context="txt", text="txt"),
         "it is a question and a transcription in one"),
        (sample_type("VidQASample", video="mp4", context="txt"), "write a conversation"),
        (sample_type("OCRSample", image="jpg", text="txt", block_boxes="json[boxes]"),
         "not read: block_boxes; .* leave the others out"),
        (sample_type("OCRSample", image="jpg", text="txt", words_text="json[words]"),
         "not read: words_text; known are image, text"),
        (sample_type("OCRSample", image="jpg"), "OCRSample does not say where text is"),
        (sample_type("VQASample", image="jpg", answers="txt"), "does not say where context is"),
        (sample_type("CaptioningSample", image="jpg", captoin="txt"), "not read: captoin"),
        (sample_type("CaptioningSample", image="jpg", caption="json[a"), r"'json\[a' is not like"),
    ],
)  # fmt: skip
def test_energon_settings_that_are_not_read(make_config, tmp_path: Path, dataset, message: str):
    folder = tmp_path / "prepared"
    prepare(folder, dataset, [{"__key__": "k", "jpg": IMAGE, "txt": b"A cat."}])
    with pytest.raises(DataError, match=rf"dataset\.yaml: .*{message}"):
        open_indexes(make_config(f"data.blend={{source: {{path: {folder}}}}}"))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"split_parts": {"train": "a.tar"}}, "expected a list of names, found 'a.tar'"),
        ({"split_parts": {"train": ["a-{0..2.tar"]}}, "Unbalanced braces: 'a-{0..2.tar'"),
        ({"split_parts": {"train": []}, "exclude": 7}, "expected a list of names, found 7"),
        ({"split_parts": {1: ["a.tar"]}}, r"no split 'train' .*, only 1"),
    ],
)
def test_splits_that_are_not_read(make_config, tmp_path: Path, split, message: str):
    folder = tmp_path / "prepared"
    samples = [{"__key__": "k", "jpg": IMAGE, "txt": b"A cat."}]
    prepare(folder, PREPARED["captions"][0], samples, split)
    with pytest.raises(DataError, match=rf"split\.yaml.*{message}"):
        open_indexes(make_config(f"data.blend={{source: {{path: {folder}}}}}"))


def test_an_import_that_is_not_complete_is_no_source(make_config, tmp_path: Path):
    sample = {"__key__": "k", "png": IMAGE, "txt": b"A cat."}
    for name in ("whole", ".half.import"):
        write_shard(tmp_path / "data" / "train" / name / "a.tar", [sample])
    assert list(find_sources(make_config(f"data.root={tmp_path / 'data'}"))) == ["whole"]


def test_prompts_of_a_source(make_config, tmp_path: Path):
    sample = {"__key__": "k", "png": IMAGE, "txt": b"A cat."}
    write_shard(tmp_path / "data" / "train" / "captions" / "a.tar", [sample])
    root = f"data.root={tmp_path / 'data'}"
    plain, detailed = (
        open_indexes(make_config(root, f"data.blend={{captions: {{prompts: {pool}}}}}"))[0]
        for pool in ("caption", "caption_detailed")
    )
    assert plain.content_hash != detailed.content_hash
    with pytest.raises(DataError, match="no prompt pool 'capton'; there are caption"):
        open_indexes(make_config(root, "data.blend={captions: {prompts: capton}}"))
    with pytest.raises(DataError, match=r"a\.tar: sample k: prompt pool 'vqa' cannot ask"):
        open_indexes(make_config(root, "data.blend={captions: {prompts: vqa}}"))


SAMPLES = [{"__key__": "k", "txt": b"A cat.", "png": draw_image(9, 9)}]


@pytest.mark.parametrize("names", ["train-0 val-0", "val-0", "0 1 test", "val2017_1"])
def test_shards_of_other_splits_are_no_source(make_config, tmp_path: Path, names: str):
    for name in names.split():
        write_shard(tmp_path / "data" / "train" / "coco" / f"{name}.tar", SAMPLES)
    with pytest.raises(DataError, match=r"coco: 1 of its \d shards are not of data\.split train"):
        find_sources(make_config(f"data.root={tmp_path / 'data'}"))


def test_shards_that_are_read_where_they_are_and_files_beside_them(make_config, tmp_path: Path):
    root = tmp_path / "data" / "train"
    for name in ("training_data", "contest-1", "train-0", "latest"):
        write_shard(root / "a" / f"{name}.tar", SAMPLES)
    write_shard(root / "test" / "test-000000-000.tar", SAMPLES)  # as an import calls it
    (root / "test" / "import.json").write_text("{}")
    (root / "a" / "more.tar.gz").write_bytes(b"x")
    (root / "a" / "info.json").write_bytes(b"{}")
    sources = find_sources(make_config(f"data.root={tmp_path / 'data'}"))
    assert {name: len(source.shards) for name, source in sources.items()} == {"a": 4, "test": 1}
    a, test = sources.values()
    assert [p.name for p in unread_files(a.folder, a.shards)] == ["info.json", "more.tar.gz"]
    assert unread_files(test.folder, test.shards) == []
