"""lmms-eval with nvlm's own model class, found by its entry point: a checkpoint at several layouts.

Its task is made of our pictures and questions, since no data set is fetched here; the truth of each
is Megatron-core's answer, so that the score it prints is the share that is equal.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from clients.client import Client, Comparison, Trial, equal_rows
from clients.exports import MAX_NEW_TOKENS, MOST_TILES, Tried

# lmms-eval itself asks for some forty packages, most of them for models and tasks of others.
NEEDED = ("loguru", "evaluate", "sacrebleu", "pytablewriter")
STOP = "e"
EXPORT = "export, two processes, TP2"
LAYOUTS = {
    "checkpoint, one process": [],
    "checkpoint, two processes, TP2": ["tensor=2"],
    "checkpoint, two processes, PP2": ["pipeline=2"],
    "checkpoint, two processes, a model each": ["tensor=1"],
    EXPORT: ["tensor=2"],
}


def compare(trial: Trial) -> list[Comparison]:
    tried = trial.exports.served
    _write_task(trial.folder / "tasks", tried)
    ours = {name: row["text"].split(STOP)[0].strip() for name, row in tried.answers.items()}
    assert any(row["text"].strip() != ours[name] for name, row in tried.answers.items())
    comparisons = []
    for layout, arguments in LAYOUTS.items():
        opened = tried.export if layout == EXPORT else tried.checkpoint
        answers, score = _run(trial, opened, arguments, list(ours))
        found = equal_rows(f"{layout}: texts", ours, answers)
        is_equal = found.is_equal and score == 1
        comparisons.append(
            replace(found, found=f"{found.found}, score {score:g}", is_equal=is_equal)
        )
    return comparisons


def _write_task(folder: Path, tried: Tried) -> None:
    folder.mkdir()
    shutil.copyfile(
        Path(__file__).parent / "programs" / "lmms_eval_task.py", folder / "lmms_eval_task.py"
    )
    rows = [
        {
            "name": name,
            "messages": question["messages"],
            "images": question["images"],
            "truth": tried.answers[name]["text"].split(STOP)[0].strip(),
        }
        for name, question in tried.questions.items()
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pictures.yaml").write_text(
        f"""\
task: local_pictures
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "docs.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function lmms_eval_task.visuals
doc_to_text: !function lmms_eval_task.text
doc_to_messages: !function lmms_eval_task.messages
doc_to_target: truth
process_results: !function lmms_eval_task.right
generation_kwargs: {{max_new_tokens: {MAX_NEW_TOKENS}, do_sample: false, until: [{STOP}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
    )


def _run(
    trial: Trial, opened: Path, arguments: list[str], names: list[str]
) -> tuple[dict[str, str], float]:
    """The answers by name, and the score that lmms-eval prints."""
    out = trial.folder / f"out-{len(list(trial.folder.iterdir()))}"  # it takes no commas
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    model = [f"pretrained={opened}", f"max_num_tiles={MOST_TILES}", *arguments]
    trial.run(
        [
            *(launch if arguments else []),
            *("-m", "lmms_eval", "--model", "nvlm", "--model_args", ",".join(model)),
            *("--tasks", "local_pictures", "--include_path", trial.folder / "tasks"),
            *("--batch_size", "1", "--log_samples", "--output_path", out),
        ]
    )
    (samples,) = out.rglob("*samples_local_pictures.jsonl")
    (results,) = out.rglob("*results.json")
    rows = map(json.loads, samples.read_text().splitlines())
    answers = {names[row["doc_id"]]: row["filtered_resps"] for row in rows}
    scores = json.loads(results.read_text())["results"]["local_pictures"]
    return answers, scores["exact_match,none"]


CLIENTS = [
    Client(
        "lmms-eval",
        NEEDED,
        "lmms_eval",
        compare,
        needs_nvlm=True,
        without_dependencies=("lmms-eval",),
    )
]
