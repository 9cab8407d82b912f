"""Folders of answers as `nvlm evaluate --suite` leaves them, without a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.conversation import converse
from nvlm.evaluate.suite.folder import begin, finish
from nvlm.evaluate.suite.scores import item_fields, score_all
from nvlm.evaluate.suite.settings import Settings, choose


def write_answers(
    out: Path,
    are_right: Sequence[int],
    skipped: Collection[int] = (),
    data_folder: Path | None = None,
) -> Path:
    """RealWorldQA with as many questions, of which those with 1 are answered right."""
    rows = [
        {"truth": {"answer": str(number)}, "answer": str(number) if is_right else "<b>none</b>"}
        for number, is_right in enumerate(are_right)
    ]
    return write_rows(out, "realworldqa", rows, skipped, data_folder)


def write_rows(
    out: Path,
    name: str,
    truths_and_answers: Sequence[Mapping[str, Any]],
    skipped: Collection[int] = (),
    data_folder: Path | None = None,
) -> Path:
    """Answers to a benchmark: each question's `truth`, `answer` and, if it has one, `group`."""
    (asked,) = choose(name, [], Settings())
    folder = out / name
    begin(
        folder,
        {
            "benchmark": name,
            "checkpoint": f"runs/{out.name}",
            "checkpoint_hash": out.name * 8,
            "settings": asked.as_fields(),
            "data": {"files": {"*": "0" * 64}, "hub_revisions": []},
            "data_folder": str(data_folder or out.absolute().parent / "data"),
            "nvlm": "0",
        },
    )
    rows = []
    for number, given in enumerate(truths_and_answers):
        key = f"{number:04d}"
        if number in skipped:
            rows.append({"key": key, "skipped": {"reason": "image", "detail": "cut short"}})
            continue
        group = given.get("group", "")
        item = Item(key, f"How many cars? {number}", (), given["truth"], group=group)
        rows.append(
            {
                **item_fields(item),
                "messages": converse(asked.benchmark, item, [], asked.settings).messages,
                "images": ["0" * 64],
                "max_num_tiles": [6],
                "repaired": {},
                "num_prompt_tokens": 9,
                "answer": given["answer"],
                "num_tokens": 2,
                "finish_reason": "stop",
            }
        )
    finish(folder, rows)
    score_all(out)
    return out
