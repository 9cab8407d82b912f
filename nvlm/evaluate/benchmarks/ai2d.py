"""AI2D (Kembhavi et al., "A Diagram Is Worth a Dozen Images", ECCV 2016): 3,088 questions about
diagrams of school books, each with four options.

There are two settings, from VLMEvalKit: in `ai2d` the labels that options name are covered by
letters; in `ai2d_no_mask` they can be read. NVLM's paper reports both; its released program says
`no_mask` and shows the covered images all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import Row, find_files, parquet_rows, shown, tsv_rows
from nvlm.evaluate.benchmarks.wording import OPTION_LETTER, after_images, lettered
from nvlm.evaluate.scorers.options import LETTERS, option_score

_PARQUET = "**/test-*.parquet"


def _read(tsv: str, folder: Path, split: str) -> Iterator[Item]:
    del split  # there is one
    paths = find_files(folder, [_PARQUET, tsv])
    if paths[0].suffix == ".parquet":
        rows = parquet_rows(paths, ["question", "options", "answer"], image="image")
        for number, row in enumerate(rows):
            yield _item(row, f"{number:04d}", row.texts("options"), row.name("answer"), row.images)
        return
    images: dict[str, Sequence[ImageSource]] = {}  # by index; later rows name earlier ones'
    for row in tsv_rows(paths[0], "image"):
        index = row.name("index")
        other = row.values.get("image")
        if other is not None and other not in images:
            raise row.wrong(f"its image is that of index {shown(other)}, which no row before has")
        images[index] = images[other] if other is not None else row.images
        options = [row.text(letter) for letter in LETTERS[:9] if letter in row.values]
        yield _item(row, index, options, row.name("answer"), images[index])


def _item(
    row: Row, key: str, options: list[str], answer: str, images: Sequence[ImageSource]
) -> Item:
    """
    Args:
        answer: the letter, or the number from 0 on.
    """
    if len(images) != 1:
        raise row.wrong(f"{len(images)} images, expected one")
    letters = LETTERS[: len(options)]
    letter = letters[int(answer)] if answer in map(str, range(len(options))) else answer
    if letter not in letters or len(letter) != 1:
        raise row.wrong(f"`answer` is {shown(answer)}, which is none of {len(options)} options")
    return Item(key, row.text("question"), images, {"letter": letter}, options=options)


def _prompt(item: Item) -> str:
    return after_images(item, f"{item.question}\n{lettered(item.options)}{OPTION_LETTER}")


def _score(item: Item, answer: str) -> float:
    return option_score(answer, item.options, item.truth["letter"])


AI2D = Benchmark(
    name="ai2d",
    title="AI2D",
    metric="accuracy",
    splits=("test",),
    files={
        _PARQUET: "questions and images, as lmms-lab/ai2d has them",
        "**/AI2D_TEST.tsv": "or VLMEvalKit's file",
    },
    source="https://huggingface.co/datasets/lmms-lab/ai2d or VLMEvalKit's AI2D_TEST.tsv",
    read=partial(_read, "**/AI2D_TEST.tsv"),
    prompt=_prompt,
    score=_score,
    max_new_tokens=32,  # a letter, or it with the option's text
    paper_score=85.2,
)

AI2D_NO_MASK = Benchmark(
    name="ai2d_no_mask",
    title="AI2D without masks",
    metric="accuracy",
    splits=("test",),
    files={
        _PARQUET: "questions and images, as Efficient-Large-Model/ai2d-no-mask has them",
        "**/AI2D_TEST_NO_MASK.tsv": "or VLMEvalKit's file",
    },
    source="https://huggingface.co/datasets/Efficient-Large-Model/ai2d-no-mask or VLMEvalKit's "
    "AI2D_TEST_NO_MASK.tsv",
    read=partial(_read, "**/AI2D_TEST_NO_MASK.tsv"),
    prompt=_prompt,
    score=_score,
    max_new_tokens=32,
    paper_score=94.2,
)
