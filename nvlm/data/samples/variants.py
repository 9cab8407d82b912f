"""Samples that leave their wording open: every question and answer they may be used with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvlm.data.samples.prompts import fill
from nvlm.data.samples.regions import read_regions
from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import shown, text_with_marks, text_without_marks

_MAX_ANSWERS = 256
# Beside much larger ones, sums of weights would lose those of other samples.
_MAX_WEIGHT = 1_000_000
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Of a page with more regions the first ones are asked for.
_MAX_REFERRED_REGIONS = 64

# What a prompt pool must fill in to ask for a kind. Referring has two pools, one per direction.
POOL_FIELDS = {
    "caption": frozenset[str](),
    "vqa": frozenset({"question"}),
    "multiple_choice": frozenset({"question", "choices"}),
    "ocr": frozenset[str](),
    "ocr_grounded": frozenset[str](),
    "ocr_locate": frozenset({"text"}),
    "ocr_read": frozenset({"region"}),
}

# A way to use a sample: question, answer, weight.
Variant = tuple[str, str, float]
# Pool of a kind -> its prompts.
FindPrompts = Callable[[str], list[str]]


def read_variants(
    kind: str, value: dict[str, Any], num_images: int, find_prompts: FindPrompts
) -> list[Variant]:
    """Every way to use a sample: the user turn with its images, the answer, the weight.

    Images stand before the text, but where a question places all of them itself.
    """
    marks = f"{IMAGE_MARK}\n" * num_images
    question = value.get("question")
    if kind in ("vqa", "multiple_choice"):
        value = {**value, "question": text_with_marks(question, "question", num_images)}
        marks = "" if IMAGE_MARK in value["question"] else marks
    variants = READERS[kind](value, find_prompts)
    return [(marks + text, answer, weight) for text, answer, weight in variants]


def _read_caption(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    captions = value.get("caption")
    captions = captions if isinstance(captions, list) and captions else [captions]
    answers = [text_without_marks(caption, "caption") for caption in captions]
    return [(prompt, answer, 1.0) for answer in answers for prompt in find_prompts("caption")]


def _read_vqa(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    question = value["question"]
    answers = value.get("answers", value.get("answer"))
    answers = answers if isinstance(answers, list) and answers else [answers]
    texts = [text_without_marks(answer, "answer") for answer in answers]
    weights = value.get("answer_weights")
    weights = [1.0] * len(texts) if weights is None else _read_weights(weights, len(texts))
    # Several people often give the same answer.
    by_answer: dict[str, float] = {}
    for text, weight in zip(texts, weights, strict=True):
        by_answer[text] = by_answer.get(text, 0.0) + weight
    by_answer = {text: weight for text, weight in by_answer.items() if weight > 0}
    if len(by_answer) > _MAX_ANSWERS:
        raise SampleError("fields", f"{len(by_answer)} different answers, at most {_MAX_ANSWERS}")
    return [
        (fill(prompt, {"question": question}), answer, weight)
        for answer, weight in by_answer.items()
        for prompt in (find_prompts("vqa") if _has_words(question) else ["{question}"])
    ]


def _has_words(question: str) -> bool:
    """Not where it is only the image's mark: there is nothing that a prompt could ask."""
    return bool(question.replace(IMAGE_MARK, "").strip())


def _read_weights(value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise SampleError("fields", f"answer_weights is {shown(value)}, expected {count} numbers")
    for weight in value:
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight <= _MAX_WEIGHT:
            raise SampleError(
                "fields",
                f"answer_weights has {shown(weight)}, expected numbers from 0 to {_MAX_WEIGHT}",
            )
    if not sum(value) > 0:
        raise SampleError("fields", "answer_weights are all zero")
    return [float(weight) for weight in value]


def _read_multiple_choice(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    question = value["question"]
    options, correct = value.get("choices"), value.get("correct")
    if not isinstance(options, list) or not 2 <= len(options) <= len(_LETTERS):
        raise SampleError("fields", f"choices is {shown(options)}, expected 2 to 26 texts")
    if type(correct) is not int or not 0 <= correct < len(options):
        raise SampleError(
            "fields", f"correct is {shown(correct)}, expected a number from 0 to {len(options) - 1}"
        )
    texts = [text_without_marks(option, f"choice {i}") for i, option in enumerate(options)]
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))
    return [
        (fill(prompt, {"question": question, "choices": lines}), _LETTERS[correct], 1.0)
        for prompt in find_prompts("multiple_choice")
    ]


def _read_ocr(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    answer = text_without_marks(value.get("text"), "text")
    return [(prompt, answer, 1.0) for prompt in find_prompts("ocr")]


def _read_grounded(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    answer = "".join(region.grounded() for region in read_regions(value.get("regions")))
    return [(prompt, answer, 1.0) for prompt in find_prompts("ocr_grounded")]


def _read_referring(value: dict[str, Any], find_prompts: FindPrompts) -> list[Variant]:
    regions = read_regions(value.get("regions"))
    texts = [region.text for region in regions]
    variants: list[Variant] = []
    for region in regions[:_MAX_REFERRED_REGIONS]:
        read, locate = find_prompts("ocr_read"), find_prompts("ocr_locate")
        variants += [(fill(p, {"region": region.place}), region.text, 1.0) for p in read]
        # A text that stands in several places has no one place to answer.
        if texts.count(region.text) == 1:
            variants += [(fill(p, {"text": region.text}), region.place, 1.0) for p in locate]
    return variants


READERS = {
    "caption": _read_caption,
    "vqa": _read_vqa,
    "multiple_choice": _read_multiple_choice,
    "ocr": _read_ocr,
    "ocr_grounded": _read_grounded,
    "ocr_referring": _read_referring,
}
