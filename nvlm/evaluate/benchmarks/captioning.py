"""What the benchmarks of captions share: the prompt, and CIDEr; one caption's score is ROUGE-L.

The prompt is that of NVLM's released scripts (captioning in run_text_generation.py), letter by
letter. Those let a model say 16 tokens, which cuts most captions off; here it may say 64.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Item, Summary
from nvlm.evaluate.scorers.captions import caption_scores, rouge_l

METRIC = "CIDEr"
MAX_NEW_TOKENS = 64
REFERENCES = "references"


def caption_prompt(item: Item) -> str:
    return f"{IMAGE_MARK}\nProvide a one-sentence caption for provided image."


def first_reference(item: Item) -> str:
    """An example's caption."""
    return item.truth[REFERENCES][0].strip()


def score_caption(item: Item, answer: str) -> float:
    return rouge_l(answer, item.truth[REFERENCES])


def summarise_captions(
    items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]
) -> Summary:
    """CIDEr x 100, also of each group by itself, as if there were no other captions."""
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        if item.group:
            groups.setdefault(item.group, []).append(number)
    parts = caption_scores(answers, [item.truth[REFERENCES] for item in items], groups)
    return Summary(parts.pop("CIDEr"), parts)
