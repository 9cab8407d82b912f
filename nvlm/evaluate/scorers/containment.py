"""OCRBench's score: whether an answer has the expected text in it.

From Liu et al., "OCRBench", 2023 (github.com/Yuliang-Liu/MultimodalOCR): lower case, newlines as
spaces; formulas (the source HME100k) with their case and without spaces. One point for each of
1,000 questions.

Known differences, on purpose: NVLM's released scripts give a point for each expected text that is
found, so a question with several can give more than one; here it gives one. lmms-eval also reads
full-width letters as the usual ones; here, as in the benchmark's own code, they differ. An expected
text that is empty is found by none of the answers, not by all.
"""

from __future__ import annotations

from collections.abc import Sequence


def contains_answer(answer: str, truths: Sequence[str], is_formula: bool = False) -> float:
    """1 if one of `truths` is in `answer`, else 0."""
    compared = _formula if is_formula else _text
    given = compared(answer)
    return float(any(truth and truth in given for truth in map(compared, truths)))


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
