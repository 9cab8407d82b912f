"""How often MathVista's rules score an answer as GPT's extraction did.

    git clone https://github.com/lupantech/MathVista
    python benchmarks/mathvista_extraction.py MathVista/results

The benchmark publishes what models answered to its 1,000 questions, what GPT-4 extracted, and
whether that was right. Its comparison takes the choice with the fewest edits where the extraction
names none (such as `N/A`); the share of such guesses that were right is given beside it, and the
agreement is with the scores without them. Runs that wrote programs, whose output was extracted, and
drawn answers are left out.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm.evaluate.scorers.mathvista_answers import mathvista_score
from nvlm.evaluate.scorers.options import LETTERS

LEFT_OUT = ("code", "random", "template")


def names_a_choice(extraction: str, choices: list[str]) -> bool:
    letters = re.findall(r"\(([a-zA-Z])\)", extraction)
    named = letters[0].upper() if letters else extraction.strip()
    return named in choices or named in list(LETTERS[: len(choices)])


def compare(answers: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, int, int, int]:
    """Of how many; right by the rules, by GPT, by a guess of the comparison; scored alike."""
    num = ours = official = guessed = alike = 0
    for row in answers.values():
        if "true_false" not in row or not isinstance(row.get("response"), str):
            continue
        choices = row["choices"] or []
        is_right = bool(mathvista_score(row["response"], {**row, "choices": choices}))
        is_guess = bool(choices) and not names_a_choice(str(row["extraction"]), choices)
        num += 1
        ours += is_right
        official += row["true_false"]
        guessed += row["true_false"] and is_guess
        alike += is_right == (row["true_false"] and not is_guess)
    return num, ours, official, guessed, alike


def main(folder: Path) -> None:
    agreements = []
    print(f"{'run':45} {'rules':>6} {'GPT':>6} {'guesses':>8} {'alike':>6}   (%)")
    for path in sorted(folder.glob("*/output_*.json")):
        if any(word in str(path.relative_to(folder)) for word in LEFT_OUT):
            continue
        num, ours, official, guessed, alike = compare(json.loads(path.read_text()))
        if not num:  # without extractions
            continue
        shares = [100 * count / num for count in (ours, official, guessed, alike)]
        agreements.append(shares[-1])
        print(f"{path.stem:45} {shares[0]:6.1f} {shares[1]:6.1f} {shares[2]:8.1f} {shares[3]:6.1f}")
    print(
        f"{len(agreements)} runs: {min(agreements):.1f} to {max(agreements):.1f} % alike, "
        f"median {statistics.median(agreements):.1f} %"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
