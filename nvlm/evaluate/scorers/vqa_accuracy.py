"""VQA accuracy: how many of ten people gave the answer, after the official normalisation.

From the evaluation of visualqa.org (Antol et al., "VQA: Visual Question Answering", ICCV 2015;
Goyal et al., CVPR 2017): an answer scores min(n / 3, 1), where n of the other people gave it,
averaged over the ways to leave one person out. TextVQA (Singh et al., CVPR 2019) counts alike and
normalises a little more before (`normalise_textvqa`).

Known differences from reference code:

- visualqa.org's own program compares the texts as they stand where all ten people agree, so that
  `Yes` is wrong beside ten `yes`. Here texts are always normalised, as in NVLM's scripts.
- It removes the first 32 periods of a text; here all go.
- NVLM's scripts count min(n / 3, 1) over all ten people, without leaving one out: an answer that
  two people gave scores 0.67 there and 0.6 here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# A person's answer is right if so many of the others gave it.
_NUM_AGREEING = 3
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_PUNCTUATION = ';/[]"{}()=+\\_->@`,?!<'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_AT_END_OF_WORD = re.compile(r"\.(?!\d)")
# Contractions that are also known without one of their apostrophes.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _misspelt(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        for found in re.finditer("'", word):
            yield word[: found.start()] + word[found.end() :], word


# The official table has this one the other way round.
_SPELLINGS = {**dict(_misspelt(_CONTRACTIONS.split())), "somebody'd": "somebodyd"}


def normalise_vqa(text: str) -> str:
    """A text as VQA's evaluation compares it: lower case, without punctuation and articles, digits
    for number words up to ten, apostrophes in contractions.

    A mark becomes a space, unless it stands beside a space anywhere in the text, or the text has a
    number with a comma: then it goes without one.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number_with_comma = bool(_COMMA_IN_NUMBER.search(text))
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_number_with_comma else " ")
    cleaned = _PERIOD_AT_END_OF_WORD.sub("", cleaned)
    words = [_NUMBER_WORDS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_textvqa(text: str) -> str:
    """As TextVQA's evaluation compares it: `normalise_vqa` after commas and question marks are
    removed and a possessive 's is split off.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_vqa(text)


def vqa_accuracy(
    answer: str, people: Sequence[str], normalise: Callable[[str], str] = normalise_vqa
) -> float:
    """Between 0 and 1: 0.3, 0.6, 0.9, 1 where one, two, three, four or more of ten people agree.

    Args:
        people: each person's answer, as published: ten where nothing is wrong with the data.
    """
    given = normalise(answer)
    agreeing = [normalise(other) == given for other in people]
    return _leaving_one_out(sum(agreeing), len(agreeing))


def textvqa_accuracy(answer: str, people: Sequence[str]) -> float:
    return vqa_accuracy(answer, people, normalise_textvqa)


def _leaving_one_out(num_agreeing: int, num_people: int) -> float:
    """The mean of min(n / 3, 1) over the `num_people` sets of all but one."""
    assert num_people > 0
    rest = num_people - num_agreeing
    thirds = num_agreeing * min(num_agreeing - 1, _NUM_AGREEING)
    thirds += rest * min(num_agreeing, _NUM_AGREEING)
    return thirds / (_NUM_AGREEING * num_people)
