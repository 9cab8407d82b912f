"""Do two programs give the same answers, token by token?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvlm.errors import DataError

Identity = tuple[str, str]  # source, sample id


@dataclass(frozen=True)
class Agreement:
    """Answers of the same questions by two programs."""

    num_samples: int
    num_tokens: int  # answer tokens of the first program
    different_prompts: list[Identity]
    different_answers: list[Identity]

    @property
    def num_equal(self) -> int:
        return self.num_samples - len({*self.different_prompts, *self.different_answers})

    @property
    def is_complete(self) -> bool:
        """Whether every sample agrees, and there is any."""
        return self.num_samples > 0 and self.num_equal == self.num_samples


def compare_answers(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> Agreement:
    """Compare `prompt_token_ids` and `answer_token_ids` of rows with the same source and sample_id.

    Raises:
        DataError: the two did not answer the same questions, or not with as much of the prompts.
    """
    first = {_identity(row): row for row in ours}
    second = {_identity(row): row for row in theirs}
    if len(first) != len(ours) or len(second) != len(theirs):
        raise DataError("a sample was answered twice: sample ids must be unique in a source")
    kept = sorted({_shares(row) for row in (*ours, *theirs)})
    if len(kept) > 1:
        raise DataError(
            f"answers with {kept[0]} and with {kept[1]} of the prompt kept: ask both programs with "
            "the same --keep-visual-tokens and --keep-cache"
        )
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise DataError(
            f"{len(odd)} of {len(first.keys() | second.keys())} samples were answered by one "
            f"program only, such as {odd[0]}: both must answer the same questions"
        )

    def differing(key: str) -> list[Identity]:
        return [name for name, row in first.items() if list(row[key]) != list(second[name][key])]

    return Agreement(
        num_samples=len(first),
        num_tokens=sum(len(row["answer_token_ids"]) for row in first.values()),
        different_prompts=differing("prompt_token_ids"),
        different_answers=differing("answer_token_ids"),
    )


def _shares(row: Mapping) -> str:
    """What `Thrift.as_fields` noted in the row."""
    shares = {name: share for name, share in row.items() if name.startswith("keep_")}
    return ", ".join(f"{name} {share:g}" for name, share in sorted(shares.items())) or "all"


def _identity(row: Mapping) -> Identity:
    return row["source"], row["sample_id"]
