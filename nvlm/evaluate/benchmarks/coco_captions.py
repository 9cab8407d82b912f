"""COCO captions on Karpathy's split: 5,000 of COCO's photographs of 2014, five captions of each.

Chen et al., "Microsoft COCO Captions", 2015; the split is of Karpathy and Fei-Fei, CVPR 2015. It is
read from `dataset_coco.json` as Karpathy published it, or from `coco_karpathy_SPLIT.json` as BLIP
did. Training images are `train` and `restval`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nvlm.evaluate.benchmarks.captioning import (
    MAX_NEW_TOKENS,
    METRIC,
    REFERENCES,
    caption_prompt,
    first_reference,
    score_caption,
    summarise_captions,
)
from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.benchmarks.reading import Row, find_files, has_files, json_rows, shown
from nvlm.evaluate.benchmarks.vqa_files import coco_images
from nvlm.evaluate.scorers.captions import check_caption_scoring

_KARPATHY = "**/dataset_coco.json"
_TRAIN = ("train", "restval")


def _read(folder: Path, split: str) -> Iterator[Item]:
    blip = f"**/coco_karpathy_{split}.json"
    images = coco_images(folder)
    if has_files(folder, _KARPATHY):
        for row in json_rows(find_files(folder, [_KARPATHY])[0], "images"):
            found = row.text("split")
            if found == split or (split == "train" and found in _TRAIN):
                name = f"{row.text('filepath')}/{row.text('filename')}"
                truth = {REFERENCES: _sentences(row)}
                yield Item(row.name("cocoid"), "", [images.find(name, row)], truth)
        return
    for number, row in enumerate(json_rows(find_files(folder, [_KARPATHY, blip])[0])):
        name = row.text("image")
        # Of training images it has a row for each caption.
        is_one = isinstance(row.get("caption"), str)
        references = [row.text("caption")] if is_one else row.texts("caption")
        key = f"{PurePosixPath(name).stem}-{number}" if is_one else PurePosixPath(name).stem
        yield Item(key, "", [images.find(name, row)], {REFERENCES: references})


def _sentences(row: Row) -> list[str]:
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise row.wrong(f"`sentences` is {shown(sentences)}, expected a list of captions")
    rows = [Row(s, f"{row.where} sentences") for s in sentences if isinstance(s, dict)]
    if len(rows) < len(sentences):
        raise row.wrong("`sentences` has something else than objects with `raw`")
    return [sentence.text("raw") for sentence in rows]


COCO_CAPTIONS = Benchmark(
    name="coco_captions",
    title="COCO captions",
    metric=METRIC,
    splits=("test", "val"),
    files={
        _KARPATHY: "Karpathy's split, with the folders val2014 and train2014 here or in DIR/coco",
        "**/coco_karpathy_*.json": "or BLIP's files of it",
    },
    source="https://cs.stanford.edu/people/karpathy/deepimagesent/ (caption_datasets.zip), "
    "https://cocodataset.org/#download (2014 train and val images)",
    read=_read,
    prompt=caption_prompt,
    score=score_caption,
    max_new_tokens=MAX_NEW_TOKENS,
    prompt_is="published",
    summarise=summarise_captions,
    can_resample=False,
    train_split="train",
    answer=first_reference,
    check=check_caption_scoring,
)
