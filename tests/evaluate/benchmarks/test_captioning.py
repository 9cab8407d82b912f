"""COCO captions, NoCaps and TextCaps from their published files."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
from helpers import benchmark_data_b as made

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.coco_captions import COCO_CAPTIONS
from nvlm.evaluate.benchmarks.nocaps import NOCAPS
from nvlm.evaluate.benchmarks.textcaps import TEXTCAPS
from nvlm.evaluate.scorers.captions import caption_scores

PROMPT = "<image>\nProvide a one-sentence caption for provided image."
needs_java = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pycocoevalcap") is None,
    reason="needs Java and pycocoevalcap",
)


def references(items):
    return [item.truth["references"] for item in items]


@pytest.mark.parametrize("write", [made.write_karpathy, made.write_blip_karpathy])
def test_karpathys_split(write, tmp_path):
    folder = write(tmp_path)
    items = list(COCO_CAPTIONS.read(folder, "test"))
    assert references(items) == [made.CAPTIONS[7], made.CAPTIONS[8]]
    assert [item.images[0]() for item in items] == [made.drawn(0), made.drawn(1)]
    assert {COCO_CAPTIONS.prompt(item) for item in items} == {PROMPT}
    assert len({item.key for item in items}) == 2
    train = list(COCO_CAPTIONS.read(folder, "train"))
    assert [text for texts in references(train) for text in texts] == made.CAPTIONS[9]
    assert len({item.key for item in train}) == len(train)
    assert COCO_CAPTIONS.answer(train[0]) == made.CAPTIONS[9][0]


def test_nocaps(tmp_path):
    folder = made.write_nocaps(tmp_path)
    items = list(NOCAPS.read(folder, "val"))
    assert references(items) == list(made.CAPTIONS.values())
    assert [item.group for item in items] == ["in-domain", "near-domain", "out-domain"]
    assert [item.images[0]() for item in items] == [made.drawn(n) for n in range(3)]
    assert NOCAPS.prompt(items[0]) == PROMPT
    (folder / "nocaps_val_image_info.json").unlink()
    assert list(NOCAPS.read(folder, "val"))[2].group == "out-domain"
    (folder / "images").rename(folder / "validation")
    assert len(list(NOCAPS.read(folder, "val"))) == 3


def test_nocaps_parquet(tmp_path):
    rows = [{"image_id": n, "annotations_captions": texts} for n, texts in made.CAPTIONS.items()]
    made.write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows)
    shutil.copy(made.write_nocaps(tmp_path / "json") / "nocaps_val_image_info.json", tmp_path)
    shutil.rmtree(tmp_path / "json")
    items = list(NOCAPS.read(tmp_path, "val"))
    assert references(items) == list(made.CAPTIONS.values())
    assert [item.group for item in items] == list(made.DOMAINS.values())


def test_textcaps_asks_for_an_image_once(tmp_path):
    folder = made.write_textcaps(tmp_path)
    items = list(TEXTCAPS.read(folder, "val"))
    assert references(items) == list(made.CAPTIONS.values())
    assert items[2].key == f"{9:016x}" and items[2].images[0]() == made.drawn(2)
    made.write_textcaps(tmp_path, "train")
    assert TEXTCAPS.answer(next(TEXTCAPS.read(folder, "train"))) == made.CAPTIONS[7][0]


def test_textcaps_parquet(tmp_path):
    rows = [{"image_id": str(n), "caption_str": texts} for n, texts in made.CAPTIONS.items()]
    made.write_parquet(tmp_path / "val-00000-of-00001.parquet", rows)
    assert references(TEXTCAPS.read(tmp_path, "val")) == list(made.CAPTIONS.values())


@needs_java
def test_cider_of_all_and_of_each_group(tmp_path):
    items = list(NOCAPS.read(made.write_nocaps(tmp_path), "val"))
    answers = ["a red ball on the grass", "two boys kick a ball", "a cat"]
    scores = [NOCAPS.score(item, answer) for item, answer in zip(items, answers, strict=True)]
    assert scores[1] == 1 and 0 < scores[2] < scores[0]
    summary = NOCAPS.summarise(items, answers, scores)
    assert summary.score == caption_scores(answers, references(items))["CIDEr"] > 0
    assert set(summary.parts) == {
        "BLEU-4", "CIDEr in-domain", "CIDEr near-domain", "CIDEr out-domain",
    }  # fmt: skip


@pytest.mark.parametrize(
    "write, entry, file, change, message",
    [
        (made.write_karpathy, COCO_CAPTIONS, "dataset_coco.json",
         lambda v: v["images"][1].pop("sentences"), r"images\[1\]: no `sentences`; there is"),
        (made.write_karpathy, COCO_CAPTIONS, "dataset_coco.json",
         lambda v: v["images"][0].update(filename="x.jpg"),
         r"images\[0\]: the image val2014/x.jpg is missing; looked in"),
        (made.write_karpathy, COCO_CAPTIONS, "dataset_coco.json",
         lambda v: v["images"][0].update(filepath="../.."), r"is not the name of a file"),
        (made.write_blip_karpathy, COCO_CAPTIONS, "coco_karpathy_test.json",
         lambda v: v[1].update(caption=[]), r"\[1\]: `caption` is \[\], expected a list of texts"),
        (made.write_nocaps, NOCAPS, "nocaps_val_4500_captions.json",
         lambda v: v.update(annotations=[]), r"images\[0\]: image 7 has no caption"),
        (made.write_nocaps, NOCAPS, "nocaps_val_4500_captions.json",
         lambda v: v["annotations"][2].update(caption=5), r"annotations\[2\]: `caption` is 5"),
        (made.write_textcaps, TEXTCAPS, "TextCaps_0.1_val.json",
         lambda v: v.pop("data"), r"no list `data` in it"),
        (made.write_textcaps, TEXTCAPS, "TextCaps_0.1_val.json",
         lambda v: v["data"].insert(0, 3), r"data\[0\]: 3, expected an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(write, entry, file, change, message, tmp_path):
    folder = write(tmp_path)
    value = json.loads((folder / file).read_text())
    change(value)
    made.write_json(folder / file, value)
    with pytest.raises(DataError, match=message):
        list(entry.read(folder, entry.splits[0]))
