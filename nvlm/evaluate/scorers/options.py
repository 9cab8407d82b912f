"""Which option of a multiple choice an answer names.

Models asked for a letter answer `B`, `B. red`, `The answer is (B).`, or with the option's text. In
this order, the first that applies counts:

1. the answer is a letter of an option, in any case, alone or with brackets or a mark: `b`, `(B).`
2. it is the text of one option
3. it begins with a letter of an option and a mark behind it: `B. red`, `(B) as A is wrong`; but not
   with two of them: `(A) or (B)`
4. one option's letter, in upper case, stands as a word of its own among its last four words, and no
   other option's letter as a word anywhere
5. the text of one option alone is in it, as whole words, and it is not twice as long as all options
   together

4 and 5 are the rules of VLMEvalKit's matching without a judge, by which NVLM's paper evaluates AI2D
(section 6.1). Known differences from it, on purpose: lower-case letters count; so does the text of
an option that has another's text in it; so does a letter with an explanation behind it that names
other letters. And 5 looks for words: VLMEvalKit finds the option `no` in `know`, and `d` in `red`.

NVLM's released scripts compare the whole answer with the letter after VQA's normalisation, which
takes `A` for an article: there an answer of any articles is right where A is, and `B. red` never.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LETTER_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:,]?")
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])(?:\s(?!\s*(?:or|and)\b)|$)")
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# Words at the end, among which a letter counts.
_NUM_LAST_WORDS = 4


def named_option(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `answer` names; None: none, or more than one."""
    assert 0 < len(options) <= len(LETTERS)
    letters = LETTERS[: len(options)]
    answer = answer.strip()
    alone = _LETTER_ALONE.fullmatch(answer)
    if alone and alone[1].upper() in letters:
        return alone[1].upper()
    texts = [option.strip().lower() for option in options]
    if texts.count(answer.lower()) == 1:
        return letters[texts.index(answer.lower())]
    first = _LETTER_FIRST.match(answer)
    if first and (first[1] or first[2]) in letters:
        return first[1] or first[2]
    return _letter_among(answer.translate(_MARKS).split(), letters) or _text_in(answer, options)


def option_score(answer: str, options: Sequence[str], letter: str) -> float:
    """1 if `answer` names the option of `letter`, else 0."""
    return float(named_option(answer, options) == letter)


def _letter_among(words: Sequence[str], letters: str) -> str | None:
    found = [letter for letter in letters if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _NUM_LAST_WORDS:
        return found[0]
    return None


def _text_in(answer: str, options: Sequence[str]) -> str | None:
    if len(answer) > 2 * sum(map(len, options)):
        return None
    found = [
        letter
        for letter, option in zip(LETTERS, options, strict=False)
        if re.search(rf"(?<!\w){re.escape(option.lower())}(?!\w)", answer.lower())
    ]
    return found[0] if len(found) == 1 else None
