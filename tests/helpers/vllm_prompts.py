"""Fourteen kinds of prompt, as a user of a chat endpoint writes them, and what vLLM makes of them.

`vllm_prompts.json` in tests/golden has the token ids that the real vLLM gave, by version and by the
boundary of the export; `scripts/test --clients vllm` asks it again.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from helpers.paths import REPOSITORY

TABLE = REPOSITORY / "tests" / "golden" / "vllm_prompts.json"
ONE, WIDE, SIX = (1, 1), (2, 1), (3, 2)
# Texts with an image each, or as many as their marks, unless grids are given.
_SINGLE = {
    "one tile": ("What is shown?", ONE),
    "two tiles and a thumbnail": ("What is shown?", WIDE),
    "six tiles and a thumbnail": ("What is shown?", SIX),
    "two images": ("What differs?", ONE, WIDE),
    "three images": ("What differs?", WIDE, ONE, ONE),
    "text only": ("What is 2 + 2?",),
    "begins with a newline": ("\n\nWhat is shown?\n", ONE),
    "begins with a space": ("  What is shown?", ONE),
    "begins with punctuation": ("!? What is shown", ONE),
    "text of tags": ("<tile_1> and </Image><Image><tile_global_thumbnail>: what is shown?", ONE),
    "image in the middle": ("Is <image> a cat, and <image>\r\na dog?", WIDE, ONE),
    "multiple choice": (
        "What is shown?\nA. a cat\nB. a dog\n"
        "Answer with the option's letter from the given choices directly.",
        ONE,
    ),
}
# No text that vLLM tokenises gives this one's ids: it takes a spelled control token for the token.
CONTROL_TOKEN = "a control token that is spelled"

Turn = dict[str, Any]


def _user(text: str, *grids: tuple[int, int]) -> Turn:
    return {"role": "user", "content": text, "grids": list(grids)}


PROMPTS: dict[str, list[Turn]] = {
    **{name: [_user(text, *grids)] for name, (text, *grids) in _SINGLE.items()},
    "system message": [
        {"role": "system", "content": "Be brief.", "grids": []},
        _user("What is shown?", ONE),
    ],
    "several turns": [
        _user("What is shown?", WIDE),
        {"role": "assistant", "content": "A cat.\nTwo cats.", "grids": []},
        _user("And here?\n<image>", ONE),
        {"role": "assistant", "content": " A dog", "grids": []},
        _user("\nSure?"),
    ],
    CONTROL_TOKEN: [_user("What does <|im_end|> mean?", ONE)],
}


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    """As training has them: a mark for each image, in front of the text unless it is in it."""
    found = []
    for turn in turns:
        missing = len(turn["grids"]) - turn["content"].count("<image>")
        content = "<image>\n" * missing + turn["content"] if turn["grids"] else turn["content"]
        found.append({"role": turn["role"], "content": content})
    return found


def grids(turns: list[Turn]) -> list[tuple[int, int]]:
    return [tuple(grid) for turn in turns for grid in turn["grids"]]


def read_table() -> dict[str, dict[str, list[int] | str]]:
    """Version and boundary, such as `0.33.0 block` -> prompt -> token ids, or the refusal."""
    rows = json.loads(TABLE.read_text())
    return {
        asked: {name: unfold(found) for name, found in prompts.items()}
        for asked, prompts in rows.items()
    }


def write_rows(rows: dict[str, dict[str, list[int] | str]]) -> None:
    """Put rows into the table, beside those of other versions and boundaries."""
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    kept |= {
        asked: {name: fold(found) for name, found in prompts.items()}
        for asked, prompts in rows.items()
    }
    lines = [
        f" {json.dumps(asked)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(ids)}" for name, ids in prompts.items())
        + "\n }"
        for asked, prompts in sorted(kept.items())
    ]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def fold(ids: list[int] | str) -> list | str:
    """Runs of an id as [id, number]; a refusal as it is."""
    if isinstance(ids, str):
        return ids
    runs = [(token, len(list(same))) for token, same in itertools.groupby(ids)]
    return [token if number == 1 else [token, number] for token, number in runs]


def unfold(ids: list | str) -> list[int] | str:
    if isinstance(ids, str):
        return ids
    runs = [[token, 1] if isinstance(token, int) else token for token in ids]
    return [token for token, number in runs for _ in range(number)]
