"""Localisation: the box that an answer names, and how much of it covers the right one.

An answer is right where the intersection over union with the truth is 0.5 or more (Yu et al.,
"Modeling Context in Referring Expressions", ECCV 2016). Boxes are corners x1, y1, x2, y2 in
thousandths of the image's width and height, from the top left, as InternVL (`[[x1, y1, x2, y2]]`)
and NVLM (`<box>(x1, y1), (x2, y2)</box>`) write them; numbers that add up to less than 4 are shares
of width and height, as in InternVL's program.

The first box in the answer counts: four numbers in one pair of brackets or `<box>` tags, two points
in brackets each, or an answer that is four numbers and nothing else. Known differences:

- InternVL's `evaluate_grounding.py` reads square brackets alone, and the first of them even where
  it holds something else; lmms-eval reads them too, and shares alone.
- VLMEvalKit takes any four numbers of a sentence where there are no brackets, turns corners that
  are the wrong way round, and cuts boxes off at the image's edges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

THRESHOLD = 0.5
_SCALE = 1000
_NUMBER = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))"
_PAIR = rf"{_NUMBER}(?:\s*,\s*|\s+){_NUMBER}"
_FOUR = rf"{_PAIR}(?:\s*,\s*|\s+){_PAIR}"
_OPEN, _CLOSE = r"(?:[\[(]|<box>)\s*", r"\s*(?:[\])]|</box>)"
_BRACKETS = re.compile(rf"{_OPEN}{_FOUR}{_CLOSE}")
_POINTS = re.compile(rf"[\[(]\s*{_PAIR}\s*[\])]\s*,?\s*[\[(]\s*{_PAIR}\s*[\])]")
_NUMBERS_ALONE = re.compile(rf"{_FOUR}\s*\.?")

Box = tuple[float, float, float, float]


def box_in(answer: str) -> Box | None:
    """The first box in an answer, as shares of width and height; None where there is none."""
    alone = _NUMBERS_ALONE.fullmatch(answer.strip())
    matches = [
        match for match in (alone, _BRACKETS.search(answer), _POINTS.search(answer)) if match
    ]
    if not matches:
        return None
    found = min(matches, key=lambda match: match.start())
    x1, y1, x2, y2 = (float(number) for number in found.groups())
    scale = 1 if x1 + y1 + x2 + y2 < 4 else _SCALE
    return x1 / scale, y1 / scale, x2 / scale, y2 / scale


def _first(*matches: re.Match[str] | None) -> re.Match[str] | None:
    return min(filter(None, matches), key=lambda match: match.start(), default=None)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes, between 0 and 1; 0 where a box has no area.

    A box whose corners are the wrong way round has none.
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0 or _area(one) <= 0 or _area(other) <= 0:
        return 0.0
    both = width * height
    return both / (_area(one) + _area(other) - both)


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def is_located(answer: str, truth: Sequence[float]) -> bool:
    """Whether an answer's box meets the truth's, both as shares of width and height."""
    box = box_in(answer)
    return box is not None and box_iou(box, truth) >= THRESHOLD
