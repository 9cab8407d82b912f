"""TextCaps (Sidorov et al., ECCV 2020): captions that need to read what is written in the image.

The images are TextVQA's. The published file has a row for each caption; here an image is asked for
once, with all of its captions as the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    find_files,
    has_files,
    json_rows,
    parquet_rows,
)
from nvlm.evaluate.scorers.captions import check_caption_scoring


def _read(folder: Path, split: str) -> Iterator[Item]:
    pattern, parquet = f"**/TextCaps_0.1_{split}.json", f"**/{split}-*.parquet"
    if not has_files(folder, pattern):
        files = find_files(folder, [pattern, parquet])
        for row in parquet_rows(files, ("image_id", "caption_str"), image="image"):
            yield Item(row.name("image_id"), "", row.images, {REFERENCES: row.texts("caption_str")})
        return
    images = ImageFolders([folder, folder / "images", folder.parent / "textvqa"])
    seen: set[str] = set()
    for row in json_rows(find_files(folder, [pattern])[0], "data"):
        key = row.name("image_id")
        if key not in seen:
            seen.add(key)
            image = images.find(f"train_images/{key}.jpg", row)
            yield Item(key, "", [image], {REFERENCES: row.texts("reference_strs")})


TEXTCAPS = Benchmark(
    name="textcaps",
    title="TextCaps",
    metric=METRIC,
    splits=("val",),
    files={
        "**/TextCaps_0.1_*.json": "the captions, with the folder train_images here or in "
        "DIR/textvqa",
        "**/*.parquet": "or lmms-lab's files val-*.parquet and train-*.parquet",
    },
    source="https://textvqa.org/textcaps/dataset/, or https://huggingface.co/datasets/lmms-lab/TextCaps",
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
