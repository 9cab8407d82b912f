"""VLMEvalKit's class NVLM, unmodified, from a checkout: no release of it is on the package index.

    git clone https://github.com/open-compass/VLMEvalKit
    VLMEVALKIT=VLMEvalKit scripts/test --clients vlmevalkit

Without a checkout it is left out; `tests/convert/test_serving.py` makes its calls then.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from clients.client import Client, Comparison, NotHere, Trial, equal_rows
from clients.exports import MAX_NEW_TOKENS

PROGRAM = Path(__file__).parent / "programs" / "vlmevalkit_nvlm.py"
# What `vlmeval.smp` imports beyond what is here, and torchvision for torch 2.13.
NEEDED = ("validators", "sty")
ALONE = ("torchvision==0.28.*",)


def compare(trial: Trial) -> list[Comparison]:
    """Prompts against Megatron-core's; answers, in bfloat16, against the export's own `chat`."""
    checkout = _checkout()
    tried = trial.exports.served
    questions = {
        name: question for name, question in tried.questions.items() if _is_asked(question)
    }
    asked, out = trial.folder / "questions.json", trial.folder / "answers.json"
    asked.write_text(json.dumps(questions))
    trial.run([PROGRAM, checkout, tried.export, asked, out, str(MAX_NEW_TOKENS)])
    found = json.loads(out.read_text())
    prompts = {name: tried.answers[name]["prompt_ids"] for name in questions}
    return [
        equal_rows("class `NVLM`: prompts", prompts, found["prompts"]),
        equal_rows(
            "its answers in bfloat16, against the export's own `load_image` and `chat`",
            found["own answers"],
            found["answers"],
        ),
    ]


def _is_asked(question: dict) -> bool:
    """The class takes one turn with one image."""
    return len(question["images"]) == 1 and len(question["messages"]) == 1


def _checkout() -> Path:
    folder = os.environ.get("VLMEVALKIT")
    if folder is None:
        raise NotHere("VLMEVALKIT names no checkout of open-compass/VLMEvalKit")
    return Path(folder).resolve()


def _commit() -> str:
    command = ["git", "-C", str(_checkout()), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


CLIENTS = [
    Client(
        "vlmevalkit",
        NEEDED,
        "VLMEvalKit",
        compare,
        without_dependencies=ALONE,
        version=lambda: f"commit {_commit()}",
    )
]
