"""ChartQA's relaxed accuracy: a number may be 5 % off, everything else must be equal.

From Masry et al., "ChartQA", Findings of ACL 2022, section 5.1, after Methani et al., "PlotQA",
WACV 2020. As pix2struct, Qwen-VL, lmms-eval and VLMEvalKit count it: a number is what Python's
`float` reads; one with a percent sign is a hundredth of it, so `5%` is 0.05; a truth of 0 must be
written alike; texts are compared without regard to case and outer spaces.

NVLM's released scripts count otherwise: both sides go through VQA's normalisation (no commas, no
minus sign, digits for number words), a percent sign is dropped, so that `5%` is 5, and the interval
from 0.95 to 1.05 times the truth is empty for a negative truth. `1,000` and `five` are right there
beside 1000 and 5, and wrong here.
"""

from __future__ import annotations

MAX_RELATIVE_ERROR = 0.05


def relaxed_accuracy(answer: str, truth: str) -> float:
    """1 if `answer` is right, else 0."""
    answer, truth = answer.strip(), truth.strip()
    given, expected = _number(answer), _number(truth)
    if given is not None and expected:
        return float(abs(given - expected) / abs(expected) <= MAX_RELATIVE_ERROR)
    return float(answer.lower() == truth.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
