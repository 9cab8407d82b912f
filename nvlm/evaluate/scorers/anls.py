"""ANLS: how alike an answer is to the most similar truth, in edits per character.

Average normalised Levenshtein similarity (Biten et al., "Scene Text Visual Question Answering",
ICCV 2019; Mathew et al., "DocVQA", WACV 2021): 1 - edits / length of the longer text, and 0 where
that is less than 0.5. Texts are compared in lower case, with single spaces.

Known differences, on purpose: the evaluation code of the Robust Reading Competition, and its copies
in lmms-eval and VLMEvalKit, divide by the length of the texts as they stand, with the spaces that
they do not compare, and in upper case, where `ß` is two letters. An answer with a hundred spaces
behind it so comes near to any truth. Here the compared texts' length counts.

NVLM's later scripts normalise as VQA does before, and give 0 where half of the text is right.
"""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5


def anls(answer: str, truths: Sequence[str]) -> float:
    """Between 0.5 and 1, or 0."""
    given = _compared(answer)
    best = max(_similarity(given, _compared(truth)) for truth in truths)
    return best if best >= THRESHOLD else 0.0


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters from `a` to `b` (Levenshtein 1966)."""
    previous = list(range(len(b) + 1))
    for row, char in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            replaced = previous[column - 1] + (char != other)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]


def _compared(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    length = max(len(a), len(b))
    # More edits than half of the length come to 0 anyway; a rambling answer is not worth the time.
    if abs(len(a) - len(b)) > THRESHOLD * length:
        return 0.0
    return 1 - edit_distance(a, b) / length if length else 1.0
