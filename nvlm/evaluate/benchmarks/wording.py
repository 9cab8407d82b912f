"""What prompts of several benchmarks have in common."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.scorers.options import LETTERS

SHORT_ANSWER = "Answer the question using a single word or phrase."
SHORT_ANSWER_OR_NUMBER = "Answer the question using a single word, phrase, or number."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def after_images(item: Item, text: str) -> str:
    """A line for each image, then `text`."""
    return f"{IMAGE_MARK}\n" * len(item.images) + text


def lettered(options: Sequence[str]) -> str:
    """`A. red` and so on, a line each, the last with its end."""
    return "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, options, strict=False))
