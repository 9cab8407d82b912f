"""RefCOCO, RefCOCO+ and RefCOCOg: find what an expression refers to in one of COCO's photographs.

Yu et al., "Modeling Context in Referring Expressions", ECCV 2016; Mao et al., "Generation and
Comprehension of Unambiguous Object Descriptions", CVPR 2016. In RefCOCO+ expressions do not say
where a thing is; RefCOCOg's are longer. Of testA the things are people, of testB anything else.

NVLM's model card names localisation without a benchmark or a prompt. The prompt is InternVL's, on
whose vision model it is built, and boxes are in thousandths, as both write them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import (
    Row,
    find_files,
    has_files,
    json_line_rows,
    parquet_rows,
)
from nvlm.evaluate.benchmarks.vqa_files import coco_images
from nvlm.evaluate.scorers.box_iou import is_located


def _reader(prefix: str) -> Callable[[Path, str], Iterator[Item]]:
    def read(folder: Path, split: str) -> Iterator[Item]:
        lines, parquet = f"**/{prefix}_{split}.jsonl", f"**/{split}-*.parquet"
        if has_files(folder, lines):
            return _read_lines(folder, find_files(folder, [lines])[0])
        return _read_parquet(find_files(folder, [parquet, lines]))

    return read


def _read_parquet(files: Sequence[Path]) -> Iterator[Item]:
    """A row is a box (x, y, width, height in pixels) with all expressions that people gave."""
    for number, row in enumerate(parquet_rows(files, ("answer", "bbox"), image="image")):
        left, top, width, height = row.numbers("bbox", 4)
        size = _size(row, row.images[0])
        box = _shares(row, [left, top, left + width, top + height], *size)
        for count, expression in enumerate(row.texts("answer")):
            yield Item(f"{number}-{count}", expression.strip(), row.images, {"box": box})


def _read_lines(folder: Path, path: Path) -> Iterator[Item]:
    """A row is an expression with its box (corners in pixels) and the image's size."""
    images = coco_images(folder)
    for number, row in enumerate(json_line_rows(path)):
        name = "/".join(PurePosixPath(row.text("image")).parts[-2:])  # train2014/COCO_....jpg
        size = row.integer("width"), row.integer("height")
        box = _shares(row, row.numbers("bbox", 4), *size)
        yield Item(str(number), row.text("sent").strip(), [images.find(name, row)], {"box": box})


def _size(row: Row, image: ImageSource) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image())) as opened:
            return opened.size
    except OSError as error:
        raise row.wrong(f"its image cannot be read: {error}") from None


def _shares(row: Row, corners: Sequence[float], width: int, height: int) -> list[float]:
    if width <= 0 or height <= 0 or corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise row.wrong(f"a box with corners {list(corners)} in {width} x {height} pixels")
    return [corner / size for corner, size in zip(corners, (width, height, width, height))]


def _prompt(item: Item) -> str:
    return (
        f"{IMAGE_MARK}\nPlease provide the bounding box coordinate of the region this sentence "
        f"describes: <ref>{item.question}</ref>"
    )


def _score(item: Item, answer: str) -> float:
    return float(is_located(answer, item.truth["box"]))


def _entry(name: str, title: str, prefix: str, hub: str, splits: Sequence[str]) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        metric="accuracy at IoU 0.5",
        splits=splits,
        files={
            "**/*.parquet": f"lmms-lab's files, such as {splits[0]}-*.parquet",
            f"**/{prefix}_*.jsonl": "or those of Qwen-VL and InternVL, with the folder train2014 "
            "here or in DIR/coco",
        },
        source=f"https://huggingface.co/datasets/{hub}, or the page internvl_chat/eval/refcoco of "
        "https://github.com/OpenGVLab/InternVL",
        read=_reader(prefix),
        prompt=_prompt,
        score=_score,
        max_new_tokens=100,
    )


REFCOCO = _entry("refcoco", "RefCOCO", "refcoco", "lmms-lab/RefCOCO", ("val", "testA", "testB"))
REFCOCO_PLUS = _entry(
    "refcoco_plus", "RefCOCO+", "refcoco+", "lmms-lab/RefCOCOplus", ("val", "testA", "testB")
)
REFCOCOG = _entry("refcocog", "RefCOCOg", "refcocog", "lmms-lab/RefCOCOg", ("val", "test"))
