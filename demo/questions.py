"""What the demo asks and what the right answers are: wordings, vocabularies and text-only tasks.

Every task has one correct short answer, so that accuracy is the share of exact matches.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ORDINALS = ["first", "second", "third"]
COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f4fd8",
    "orange": "#ff9f0e",
    "purple": "#8e3fbf",
}
DOCUMENT_WORDS = [
    "exit",
    "open",
    "sale",
    "taxi",
    "milk",
    "bread",
    "hotel",
    "park",
    "stop",
    "bank",
    "mail",
    "menu",
    "gate",
    "train",
    "river",
    "apple",
    "music",
    "paper",
    "north",
    "south",
    "east",
    "west",
    "tea",
    "salt",
    "gold",
    "king",
    "ship",
    "bus",
    "shop",
    "farm",
    "book",
    "door",
]
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "new"), ("up", "down"),
    ("left", "right"), ("day", "night"), ("wet", "dry"), ("high", "low"), ("good", "bad"),
    ("yes", "no"), ("in", "out"), ("black", "white"), ("early", "late"), ("full", "empty"),
]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SPELLED_WORDS = [
    "cat",
    "dog",
    "sun",
    "map",
    "pen",
    "cup",
    "hat",
    "box",
    "key",
    "car",
    "bed",
    "egg",
    "ant",
    "fox",
    "jam",
    "log",
    "net",
    "owl",
    "pig",
    "rat",
]
# One text question in this many is kept for the held-out split.
HELDOUT_TEXT_SHARE = 6

_DIGIT = [
    "What digit is this?",
    "Which digit is written here?",
    "Read the handwritten digit.",
    "Which digit from 0 to 9 do you see?",
]
_SHEET = [
    "The sheet has {rows} rows and {columns} columns. "
    "Which digit is in row {row}, column {column}?",
    "This is a sheet of {rows} rows and {columns} columns. "
    "Read the digit in row {row}, column {column}.",
    "On a sheet with {rows} rows and {columns} columns, "
    "what digit is in row {row}, column {column}?",
]
_SEARCH = [
    "One tile of this sheet holds a handwritten digit. Which digit is it?",
    "Find the handwritten digit among the coloured blocks and read it.",
    "There is one digit on this sheet. What digit is it?",
]
_DOCUMENT = [
    "Transcribe the text.",
    "What is written in this document?",
    "Read the text in the image.",
]
_HIGHEST = ["Which colour is the highest bar?", "What colour is the tallest bar in the chart?"]
_LOWEST = ["Which colour is the lowest bar?", "What colour is the shortest bar in the chart?"]
_NUM_BARS = ["How many bars are there?", "How many bars does the chart have?"]
_PHOTO = [
    "Describe the photo briefly.",
    "Write a caption for this image.",
    "What does the photo show?",
]
_DIGIT_OF_IMAGE = ["Which digit is in the {which} image?", "Read the digit in the {which} image."]
_IMAGE_OF_DIGIT = [
    "Which image shows the digit {digit}? Answer with its number.",
    "What is the number of the image with the digit {digit}?",
]

Generator = np.random.Generator


def pick(rng: Generator, options: Sequence | np.ndarray):
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def digit_question(rng: Generator) -> str:
    return pick(rng, _DIGIT)


def sheet_question(rng: Generator, rows: int, columns: int, row: int, column: int) -> str:
    """Rows and columns count from 1."""
    return pick(rng, _SHEET).format(rows=rows, columns=columns, row=row, column=column)


def search_question(rng: Generator) -> str:
    return pick(rng, _SEARCH)


def document_question(rng: Generator) -> str:
    return pick(rng, _DOCUMENT)


def photo_question(rng: Generator) -> str:
    return pick(rng, _PHOTO)


def photo_answer(subject: str) -> str:
    article = "" if subject.endswith(("s", "coffee", "gravel", "tissue")) else "a "
    article = "an " if article and subject[0] in "aeiou" else article
    return f"A photo of {article}{subject}."


def chart_question(rng: Generator, colours: list[str], heights: list[int]) -> tuple[str, str]:
    """Question and answer about bars given from left to right."""
    kind = int(rng.integers(5))
    if kind == 0:
        return pick(rng, _NUM_BARS), str(len(colours))
    if kind <= 2:
        return pick(rng, _HIGHEST), colours[int(np.argmax(heights))]
    return pick(rng, _LOWEST), colours[int(np.argmin(heights))]


def multi_image_question(rng: Generator, digits: list[int]) -> tuple[str, str]:
    """Question and answer about two or three different digits, one per image."""
    place = int(rng.integers(len(digits)))
    if rng.random() < 0.5:
        return pick(rng, _DIGIT_OF_IMAGE).format(which=ORDINALS[place]), str(digits[place])
    return pick(rng, _IMAGE_OF_DIGIT).format(digit=digits[place]), str(place + 1)


def all_text_questions() -> list[tuple[str, str]]:
    """Every text-only question with its answer, in a fixed order."""
    questions = []
    for a in range(10):
        for b in range(10):
            for wording in ("What is {a} plus {b}?", "Add {a} and {b}."):
                questions.append((wording.format(a=a, b=b), str(a + b)))
            if a != b:
                larger, smaller = str(max(a, b)), str(min(a, b))
                questions.append((f"Which number is larger, {a} or {b}?", larger))
                questions.append((f"Which number is smaller, {a} or {b}?", smaller))
    for pair in OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            for wording in (
                "What is the opposite of {word}?",
                "Give the opposite of {word}.",
                "Name the opposite of {word}.",
            ):
                questions.append((wording.format(word=word), opposite))
    for number, name in enumerate(DIGIT_NAMES):
        for wording in ("Write {name} as a digit.", "Which digit is {name}?"):
            questions.append((wording.format(name=name), str(number)))
        for wording in ("Write {number} as a word.", "Spell out the number {number}."):
            questions.append((wording.format(number=number), name))
    for place, day in enumerate(DAYS):
        for wording in ("Which day comes after {day}?", "What is the day after {day}?"):
            questions.append((wording.format(day=day), DAYS[(place + 1) % 7]))
        for wording in ("Which day comes before {day}?", "What is the day before {day}?"):
            questions.append((wording.format(day=day), DAYS[place - 1]))
    for word in SPELLED_WORDS:
        for wording in (
            "What is the first letter of {word}?",
            "Which letter does {word} start with?",
            "Name the first letter of {word}.",
        ):
            questions.append((wording.format(word=word), word[0]))
    return questions


def text_questions(split: str) -> list[tuple[str, str]]:
    """The text-only questions of `train` or `heldout`; no question is in both."""
    heldout = split == "heldout"
    return [
        (question, answer)
        for question, answer in all_text_questions()
        if (zlib.crc32(question.encode()) % HELDOUT_TEXT_SHARE == 0) == heldout
    ]
