"""MMMU (Yue et al., CVPR 2024): college exams in 30 subjects, some questions with several images.

The text is that of the benchmark's own program with its configuration for LLaVA-1.5, which NVLM's
scripts call. Of a question with one image its marks `<image 1>` are deleted and the image stands
before the text, as in NVLM's runs. Those show the first image alone where there are several; here
all are shown, each at its marks, as the scripts' other setting (`multi_image`) does.

The truth of the 10,500 test questions is not published: their answers are written as the server
takes them. The paper has 59.7 on `val` and 54.6 on `test`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import Row, find_files, parquet_rows, shown
from nvlm.evaluate.benchmarks.wording import OPTION_LETTER, SHORT_ANSWER, after_images
from nvlm.evaluate.scorers.mmmu_answers import chosen_letter, open_score
from nvlm.evaluate.scorers.options import LETTERS

# In the names of parquet files; five questions of each subject are for examples.
_PARQUET_SPLITS = {"val": "validation", "test": "test", "dev": "dev"}
_UNSCORED = ("test",)
_IMAGES = [f"image_{number}" for number in range(1, 8)]
_MARK = re.compile(r"<image (\d+)>")
_KEY = re.compile(r"[a-z]+_(.+)_\d+")


def _read(folder: Path, split: str) -> Iterator[Item]:
    paths = find_files(folder, [f"**/{_PARQUET_SPLITS[split]}-*.parquet"])
    columns = ["id", "question", "options", "answer", "question_type"]
    for row in parquet_rows(paths, columns, image_columns=_IMAGES):
        yield _item(row, has_truth=split not in _UNSCORED)


def _item(row: Row, has_truth: bool) -> Item:
    key, question = row.text("id"), row.text("question")
    subject = _KEY.fullmatch(key)
    if subject is None:
        raise row.wrong(f"`id` is {shown(key)}, expected SPLIT_SUBJECT_NUMBER")
    is_choice = row.text("question_type") == "multiple-choice"
    options = _texts(row, "options") if is_choice else []
    if is_choice and not 0 < len(options) <= len(LETTERS):
        raise row.wrong(f"{len(options)} options")
    truth = {}
    if has_truth:
        answers = _texts(row, "answer")
        if is_choice and (len(answers) != 1 or answers[0] not in list(LETTERS[: len(options)])):
            raise row.wrong(f"`answer` is {shown(row.get('answer'))}, which is no option's letter")
        truth = {"answers": answers}
    images = _shown_images(row, _text(question, options))
    return Item(key, question, images, truth, options=options, group=subject[1])


def _texts(row: Row, column: str) -> list[str]:
    """A list of texts, which the files have as Python writes it; a text alone is a list of it."""
    text = row.text(column).strip()
    if not text.startswith("["):
        return [text]
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise row.wrong(f"`{column}` is {shown(text)}, expected a list of texts") from None
    return [str(value) for value in values]


def _shown_images(row: Row, text: str) -> list[ImageSource]:
    """In the order of the marks in `text`; once, where all show the same one; without marks all."""
    numbers = _MARK.findall(text)
    names = [f"image_{number}" for number in numbers] or list(row.by_column)
    for name in names:
        if name not in row.by_column:
            raise row.wrong(f"its text shows {name}, which is empty")
    if not names:
        raise row.wrong("no image")
    if len(set(names)) == 1:
        names = names[:1]
    return [row.by_column[name] for name in names]


def _text(question: str, options: Sequence[str]) -> str:
    if not options:
        return f"{question}\n{SHORT_ANSWER}"
    lines = "".join(f"({a}) {text}\n" for a, text in zip(LETTERS, options, strict=False))
    return f"{question}\n{lines}\n{OPTION_LETTER}"


def _prompt(item: Item) -> str:
    text = _text(item.question, item.options)
    if len(item.images) == 1 or not _MARK.search(text):
        return after_images(item, _MARK.sub("", text))
    return _MARK.sub(IMAGE_MARK, text)


def _score(item: Item, answer: str) -> float:
    if item.options:
        return float(chosen_letter(answer, item.options) == item.truth["answers"][0])
    return open_score(answer, item.truth["answers"])


def _submission(items: Sequence[Item], answers: Sequence[str]) -> dict[str, str]:
    """By id: the letter of a multiple choice (the first one where none was read), or the answer."""
    return {
        item.key: (chosen_letter(answer, item.options) or "A") if item.options else answer.strip()
        for item, answer in zip(items, answers, strict=True)
    }


MMMU = Benchmark(
    name="mmmu",
    title="MMMU",
    metric="accuracy",
    splits=("val", "test"),
    files={
        "**/validation-*.parquet": "questions and images, by subject as MMMU/MMMU has them, or all "
        "together",
        "**/test-*.parquet": "or those of the split test",
    },
    source="https://huggingface.co/datasets/MMMU/MMMU",
    read=_read,
    prompt=_prompt,
    score=_score,
    max_new_tokens=512,  # a letter or a number, behind which a model may come by reasoning
    prompt_is="published",
    paper_score=59.7,
    train_split="dev",
    answer=lambda item: item.truth["answers"][0],
    unscored_splits=_UNSCORED,
    submission=_submission,
)
