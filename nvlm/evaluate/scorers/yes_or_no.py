"""POPE: whether an answer says yes or no, and what follows from many of them.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023. Its
program (`evaluate.py` of AoiDragon/POPE) looks at the first sentence: `no`, `No` or `not` among its
words make it a no, anything else is a yes, so that `There is a dog.` counts. So it is here, except
that

- an answer that begins with yes or no is that, whatever follows: `Yes, there is no doubt`;
- case, marks and ends of lines do not hide a word: `NO`, `No!`, `no\\nbecause` are yeses there;
- words with n't (`isn't`) deny as `not` does;
- an answer without a Latin letter, such as an empty one, is neither, and wrong; there it is a yes;
- what stands before the first period counts only where there is a word in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

YES, NO = "yes", "no"
_DENYING = frozenset({"no", "not"})
_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)*")


def yes_or_no(answer: str) -> str | None:
    """`yes`, `no`, or None where the answer is neither."""
    sentences = (_WORD.findall(part) for part in answer.lower().split("."))
    words = next(filter(None, sentences), [])
    if not words:
        return None
    if words[0] in (YES, NO):
        return words[0]
    is_denied = any(word in _DENYING or word.endswith(("n't", "n’t")) for word in words)
    return NO if is_denied else YES


def yes_no_metrics(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`, `F1` and `yes ratio`, in percent; a yes is the positive.

    `yes ratio` is the share of answers that say yes. What is not defined, as the precision where no
    answer says yes, is 0; POPE's program ends with a division by zero.
    """
    given = [yes_or_no(answer) for answer in answers]
    pairs = list(zip(given, truths, strict=True))
    assert pairs
    hits = pairs.count((YES, YES))
    num_yes = given.count(YES)
    num_positive = list(truths).count(YES)
    # 2 PR / (P + R), where that is defined.
    f1 = 2 * hits / (num_yes + num_positive) if hits else 0.0
    shares = {
        "accuracy": sum(said == truth for said, truth in pairs) / len(pairs),
        "precision": hits / num_yes if num_yes else 0.0,
        "recall": hits / num_positive if num_positive else 0.0,
        "F1": f1,
        "yes ratio": num_yes / len(pairs),
    }
    return {name: 100 * share for name, share in shares.items()}
