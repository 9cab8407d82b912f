"""transformers alone opens an export: the newest release, that of constraints.txt, older ones."""

from __future__ import annotations

import json
from pathlib import Path

from clients.client import Client, Comparison, Trial, equal_rows
from clients.exports import MAX_NEW_TOKENS

PROGRAM = Path(__file__).parent / "programs" / "chat_and_generate.py"
RELEASES = {
    "transformers": ("transformers",),
    # What this environment holds already.
    "transformers pinned": (),
    "transformers 5.0": ("transformers==5.0.*",),
    "transformers 4.57": ("transformers==4.57.*",),
    "transformers 4.49": ("transformers==4.49.*",),
}


def compare(trial: Trial) -> list[Comparison]:
    """`chat` and `generate` of both classes against Megatron-core, token by token."""
    tried = trial.exports.tiny
    questions = tried.write_questions(trial.folder / "questions.json")
    out = trial.folder / "answers.json"
    trial.run([PROGRAM, tried.export, questions, out, str(MAX_NEW_TOKENS)])
    found = json.loads(out.read_text())
    chat = {name: dict(row) for name, row in tried.answers.items()}
    generate = {name: row["answer_ids"] for name, row in tried.answers.items()}
    return [
        comparison
        for opened_by, rows in found.items()
        for comparison in (
            equal_rows(f"`{opened_by}`, `chat`: prompt, tokens, text", chat, rows["chat"]),
            equal_rows(f"`{opened_by}`, `generate`: tokens", generate, rows["generate"]),
        )
    ]


CLIENTS = [
    Client(name, requirements, "transformers", compare) for name, requirements in RELEASES.items()
]
