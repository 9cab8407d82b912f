"""NoCaps (Agrawal et al., ICCV 2019): 4,500 photographs of Open Images, ten captions of each, in
three groups by how far what they show is from COCO: in-domain, near-domain, out-domain.

The captions' file says the group of each image. lmms-lab's parquet files do not: for these it is in
`nocaps_val_image_info.json`, where that is there. There is no training split; papers draw examples
from COCO's, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm.evaluate.benchmarks.captioning import (
    MAX_NEW_TOKENS,
    METRIC,
    REFERENCES,
    caption_prompt,
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

_CAPTIONS = "**/nocaps_val_4500_captions.json"
_DOMAINS = "**/nocaps_val_image_info.json"
_PARQUET = "**/validation-*.parquet"


def _read(folder: Path, split: str) -> Iterator[Item]:
    domains: dict[str, str] = {}
    if has_files(folder, _DOMAINS):
        info = json_rows(find_files(folder, [_DOMAINS])[0], "images")
        domains = {row.name("id"): row.text("domain") for row in info}
    if not has_files(folder, _CAPTIONS):
        yield from _read_parquet(folder, domains)
        return
    path = find_files(folder, [_CAPTIONS])[0]
    references: dict[str, list[str]] = {}
    for row in json_rows(path, "annotations"):
        references.setdefault(row.name("image_id"), []).append(row.text("caption"))
    names = ("images", "val", "validation", "images/val", "images/validation", "")
    images = ImageFolders([folder / name for name in names])
    for row in json_rows(path, "images"):
        key = row.name("id")
        if key not in references:
            raise row.wrong(f"image {key} has no caption among `annotations`")
        group = str(row.values.get("domain") or "") or domains.get(key, "")
        image = images.find(row.text("file_name"), row)
        yield Item(key, "", [image], {REFERENCES: references[key]}, group=group)


def _read_parquet(folder: Path, domains: dict[str, str]) -> Iterator[Item]:
    files = find_files(folder, [_CAPTIONS, _PARQUET])
    for row in parquet_rows(files, ("image_id", "annotations_captions"), image="image"):
        key = row.name("image_id")
        truth = {REFERENCES: row.texts("annotations_captions")}
        yield Item(key, "", row.images, truth, group=domains.get(key, ""))


NOCAPS = Benchmark(
    name="nocaps",
    title="NoCaps",
    metric=METRIC,
    splits=("val",),
    files={
        _CAPTIONS: "the captions, with the folder images, val or validation",
        _PARQUET: "or lmms-lab's files",
        _DOMAINS: "the groups of lmms-lab's images; without it they have none",
    },
    source="https://nocaps.org/download, or https://huggingface.co/datasets/lmms-lab/NoCaps",
    read=_read,
    prompt=caption_prompt,
    score=score_caption,
    max_new_tokens=MAX_NEW_TOKENS,
    prompt_is="published",
    summarise=summarise_captions,
    can_resample=False,
    check=check_caption_scoring,
)
