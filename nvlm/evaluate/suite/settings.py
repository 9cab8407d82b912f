"""How benchmarks are asked, and which; what a folder of answers notes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm.errors import ConfigError
from nvlm.evaluate.benchmarks.entry import Benchmark
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.printing import listed

# All that the paper's table 7 has a number of (NVLM, Dai et al. 2024, section 6.3).
PAPER_SUITE = "nvlm"
# An answer with its reasoning, where --max-new-tokens does not say.
_TOKENS_OF_REASONING = 1024


@dataclass(frozen=True)
class Settings:
    """What the options say about every benchmark."""

    limit: int | None = None  # at most so many questions of each
    shots: int = 0  # examples before each question: 0, 4 or 8
    shots_text_only: bool = False  # the examples' images are left out
    shots_seed: int = 0
    chain_of_thought: bool = False
    max_new_tokens: int | None = None  # None: the benchmark's
    max_num_tiles: int | None = None  # per image; None: the checkpoint's stage's


@dataclass(frozen=True)
class Asked:
    """A benchmark, the split of it that is asked, and how."""

    benchmark: Benchmark
    split: str
    settings: Settings

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def is_scored(self) -> bool:
        """Whether the split's truths are published."""
        return self.split not in self.benchmark.unscored_splits

    @property
    def max_new_tokens(self) -> int:
        if self.settings.max_new_tokens is not None:
            return self.settings.max_new_tokens
        least = _TOKENS_OF_REASONING if self.settings.chain_of_thought else 0
        return max(self.benchmark.max_new_tokens, least)

    def as_fields(self) -> dict[str, Any]:
        """All that decides what is asked and how it is answered, as JSON."""
        settings = self.settings
        return {
            "split": self.split,
            "limit": settings.limit,
            "shots": settings.shots,
            "shots_text_only": settings.shots_text_only,
            "shots_seed": settings.shots_seed,
            "chain_of_thought": settings.chain_of_thought,
            "max_new_tokens": self.max_new_tokens,
            "max_num_tiles": settings.max_num_tiles,
        }


def choose(suite: str, splits: Sequence[str], settings: Settings) -> list[Asked]:
    """What `--suite` and `--split` name, in the order of the names.

    Raises:
        ConfigError: a name or a split that is not there, or settings that a benchmark cannot have.
    """
    names = list(dict.fromkeys(name.strip() for name in suite.split(",")))
    if names == [PAPER_SUITE]:
        names = [name for name, entry in BENCHMARKS.items() if entry.paper_score is not None]
    for name in names:
        if name not in BENCHMARKS:
            raise ConfigError(
                f"--suite {suite}: no benchmark {name!r}; there are "
                f"{listed(sorted(BENCHMARKS), 99)}, and `{PAPER_SUITE}` for those of the paper's "
                "table 7"
            )
    chosen = _splits(splits, names)
    asked = [
        Asked(BENCHMARKS[name], chosen.get(name, BENCHMARKS[name].splits[0]), settings)
        for name in names
    ]
    if settings.shots:
        for one in asked:
            if one.benchmark.train_split is None or one.benchmark.answer is None:
                raise ConfigError(
                    f"--shots {settings.shots}: {one.name} has no split to draw examples from; "
                    "leave it out of --suite"
                )
    elif settings.shots_text_only:
        raise ConfigError("--shots-text-only goes with --shots 4 or --shots 8")
    return asked


def _splits(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in texts:
        name, equals, split = text.partition("=")
        if not equals:
            raise ConfigError(f"--split {text}: expected NAME=SPLIT, such as mmmu=val")
        if name not in names:
            raise ConfigError(f"--split {text}: --suite does not name {name}")
        there = BENCHMARKS[name].splits
        if split not in there:
            raise ConfigError(f"--split {text}: {name} has the splits {', '.join(there)}")
        chosen[name] = split
    return chosen


def differences(there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key A, now B` for each value that differs, with dots between the keys of parts."""
    found = []
    for key in dict.fromkeys([*there, *now]):
        first, second = there.get(key), now.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{prefix}{key}.")
        elif first != second:
            found.append(f"{prefix}{key} {_shown(first)}, now {_shown(second)}")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
