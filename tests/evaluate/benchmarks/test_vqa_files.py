"""VQAv2, OK-VQA and VizWiz from their published files."""

from __future__ import annotations

import json

import pytest
from helpers import benchmark_data_b as made
from helpers.score_tables import read_score_table

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.okvqa import OKVQA
from nvlm.evaluate.benchmarks.vizwiz import VIZWIZ
from nvlm.evaluate.benchmarks.vqav2 import VQAV2
from nvlm.evaluate.scorers.vqa_accuracy import normalise_textvqa, normalise_vqa

VQAV2_GROUPS = ["other", "yes/no", "number"]
OKVQA_GROUPS = ["vehicles and transportation", "plants and animals", "other"]
SHORT = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    "entry, prefix, split, files, groups",
    [
        (VQAV2, "v2_", "val", "val2014", VQAV2_GROUPS),
        (VQAV2, "v2_", "train", "train2014", VQAV2_GROUPS),
        (OKVQA, "", "val", "val2014", OKVQA_GROUPS),
        (OKVQA, "", "train", "train2014", OKVQA_GROUPS),
    ],
)
def test_official_json(entry, prefix, split, files, groups, tmp_path):
    folder = made.write_vqa(tmp_path, entry.name, prefix, files)
    items = list(entry.read(folder, split))
    assert [item.key for item in items] == ["100", "200", "300"]
    assert [item.group for item in items] == groups
    assert items[0].truth == {"answers": made.PEOPLE[1]}
    assert [image() for item in items for image in item.images] == [made.drawn(n) for n in range(3)]
    assert entry.prompt(items[1]) == f"<image>\nIs it a cat?{SHORT}"
    assert [entry.answer(item) for item in items] == ["red", "no", "2"]
    assert [entry.score(item, "The red.") for item in items] == pytest.approx([1, 0, 0])
    assert entry.score(items[0], "dark red") == pytest.approx(0.6)
    assert entry.score(items[2], "2") == entry.score(items[2], "two") == 1
    assert not set(entry.unscored_splits) & {split}


@pytest.mark.parametrize(
    "entry, file", [(VQAV2, "validation-00000-of-00001"), (OKVQA, "val2014-00000-of-00001")]
)
def test_parquet(entry, file, tmp_path):
    folder = tmp_path / entry.name
    made.write_parquet(folder / "data" / f"{file}.parquet", made.vqa_parquet_rows())
    items = list(entry.read(folder, "val"))
    assert [item.key for item in items] == ["100", "200", "300"]
    assert items[2].truth == {"answers": made.PEOPLE[3]}
    assert items[2].group == ("number" if entry is VQAV2 else "plants and animals")
    assert [image() for item in items for image in item.images] == [made.drawn(n) for n in range(3)]


def test_answers_of_test_dev_are_written_for_the_server(tmp_path):
    folder = made.write_vqa(tmp_path, "vqav2", "v2_", "test-dev2015")
    items = list(VQAV2.read(folder, "test-dev"))
    assert VQAV2.unscored_splits == ("test-dev",) and VQAV2.submission is not None
    assert all(not item.truth for item in items)
    assert VQAV2.submission(items, ["red\n", " no ", "2"]) == [
        {"question_id": 100, "answer": "red"},
        {"question_id": 200, "answer": "no"},
        {"question_id": 300, "answer": "2"},
    ]


def test_coco_images_are_found_where_benchmarks_share_them(tmp_path):
    folder = made.write_vqa(tmp_path, "vqav2", "v2_", "val2014")
    (tmp_path / "coco").mkdir()
    (folder / "val2014").rename(tmp_path / "coco" / "val2014")
    assert len(list(VQAV2.read(folder, "val"))) == 3


def test_what_is_wrong_is_named(tmp_path):
    folder = made.write_vqa(tmp_path, "vqav2", "v2_", "val2014")
    missing = folder / made.coco_name("val2014", 20)
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(DataError, match=r"questions\[1\]: the image val2014/COCO_val2014_0+20.jpg"):
        list(VQAV2.read(folder, "val"))
    missing.write_bytes(content)

    path = folder / "v2_mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text())
    annotations["annotations"][0]["answers"] = []
    made.write_json(path, annotations)
    with pytest.raises(DataError, match=r"annotations\[0\]: `answers` is \[\]"):
        list(VQAV2.read(folder, "val"))
    annotations["annotations"] = annotations["annotations"][1:]
    made.write_json(path, annotations)
    with pytest.raises(DataError, match=r"questions\[2\]: question 300 is not among"):
        list(VQAV2.read(folder, "val"))
    path.write_text("{")
    with pytest.raises(DataError, match=r"annotations\.json: not readable as JSON"):
        list(VQAV2.read(folder, "val"))
    path.unlink()
    with pytest.raises(DataError, match=r"v2_mscoco_val2014_annotations\.json"):
        list(VQAV2.read(folder, "val"))
    with pytest.raises(DataError, match="no such folder"):
        list(VQAV2.read(tmp_path / "nothing", "val"))


def test_a_parquet_file_without_a_column(tmp_path):
    rows = [{"question_id": 1, "text": "What?"}]
    made.write_parquet(tmp_path / "validation-0.parquet", rows)
    with pytest.raises(DataError, match=r"no column `question`; there is question_id, text, image"):
        list(VQAV2.read(tmp_path, "val"))


def test_vizwiz(tmp_path):
    folder = made.write_vizwiz(tmp_path)
    items = list(VIZWIZ.read(folder, "val"))
    assert [item.key for item in items] == [f"VizWiz_val_{n:08d}.jpg" for n in (1, 2, 3)]
    assert [item.group for item in items] == ["other", "unanswerable", "other"]
    assert VIZWIZ.prompt(items[0]) == (
        "<image>\nWhat color is the ball?\nWhen the provided information is insufficient, respond "
        f"with 'Unanswerable'.{SHORT}"
    )
    answers = ["Unanswerable", "Unanswerable.", "two"]
    scores = [VIZWIZ.score(item, answer) for item, answer in zip(items, answers, strict=True)]
    assert scores == [0, 1, 1]
    summary = VIZWIZ.summarise(items, answers, scores)
    assert summary.score == pytest.approx(200 / 3)
    assert summary.parts["answers that say unanswerable"] == pytest.approx(200 / 3)
    assert summary.parts["questions that are unanswerable"] == pytest.approx(100 / 3)
    made.write_vizwiz(tmp_path, "train")
    assert VIZWIZ.answer(next(VIZWIZ.read(folder, "train"))) == "red"


def test_vizwiz_without_truth(tmp_path):
    items = list(VIZWIZ.read(made.write_vizwiz(tmp_path, "test"), "test"))
    assert VIZWIZ.submission(items[:1], ["a red\nball"]) == [
        {"image": "VizWiz_test_00000001.jpg", "answer": "a red ball"}
    ]


def test_vizwiz_parquet(tmp_path):
    rows = [
        {"question_id": f"VizWiz_val_{n:08d}", "question": "What?", "answers": made.PEOPLE[n],
         "category": "other"}
        for n in (1, 2)
    ]  # fmt: skip
    made.write_parquet(tmp_path / "data" / "val-00000-of-00001.parquet", rows)
    items = list(VIZWIZ.read(tmp_path, "val"))
    assert items[0].key == "VizWiz_val_00000001.jpg" and items[1].group == "other"
    assert items[1].truth == {"answers": made.PEOPLE[2]} and items[1].images[0]() == made.drawn(1)


@pytest.mark.parametrize("entry, name", [(OKVQA, "ok_vqa"), (VIZWIZ, "vizwiz_vqa")])
def test_as_lmms_eval_scores(entry, name):
    """It normalises as TextVQA's program; here, and by their authors, as VQA's."""
    num_same = num_other = 0
    for row in read_score_table("people"):
        ours = entry.score(Item("1", "What?", (), {"answers": row["people"]}), row["answer"])
        if ours == pytest.approx(row["scores"][f"lmms-eval {name}"]):
            num_same += 1
        else:
            texts = [row["answer"], *row["people"]]
            assert any(normalise_vqa(text) != normalise_textvqa(text) for text in texts), row
            num_other += 1
    assert num_same > 150 and num_other > 0
