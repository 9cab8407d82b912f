"""Folders of answers as `nvlm evaluate --suite` leaves them, without a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.conversation import converse
from nvlm.evaluate.suite.folder import begin, finish
from nvlm.evaluate.suite.scores import item_fields, score_all
from nvlm.evaluate.suite.settings import Settings, choose


def write_answers(
    out: Path,
    are_right: Sequence[int],
    skipped: Collection[int] = (),
    question: str = "How many cars?",
    data_folder: Path | None = None,
) -> Path:
    """RealWorldQA with as many questions, of which those with 1 are answered right."""
    (asked,) = choose("realworldqa", [], Settings())
    folder = out / "realworldqa"
    begin(
        folder,
        {
            "benchmark": "realworldqa",
            "checkpoint": f"runs/{out.name}",
            "checkpoint_hash": out.name * 8,
            "settings": asked.as_fields(),
            "data": {"files": {"*": "0" * 64}, "hub_revisions": []},
            "data_folder": str(data_folder or out.absolute().parent / "data"),
            "nvlm": "0",
        },
    )
    rows = []
    for number, is_right in enumerate(are_right):
        key = f"{number:04d}"
        if number in skipped:
            rows.append({"key": key, "skipped": {"reason": "image", "detail": "cut short"}})
            continue
        item = Item(key, f"{question} {number}", (), {"answer": str(number)})
        rows.append(
            {
                **item_fields(item),
                "messages": converse(asked.benchmark, item, [], asked.settings).messages,
                "images": ["0" * 64],
                "max_num_tiles": [6],
                "repaired": {},
                "num_prompt_tokens": 9,
                "answer": str(number) if is_right else "<b>none</b>",
                "num_tokens": 2,
                "finish_reason": "stop",
            }
        )
    finish(folder, rows)
    score_all(out)
    return out
