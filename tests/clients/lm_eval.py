"""lm-evaluation-harness on an export and on its backbone: is the ability in text kept?

The tasks are the harness's own templates (MMLU, GSM8K, MATH) over a few lines of local data, since
no data set is fetched here; HumanEval's has its fields, without the metric that runs code, which
the harness would fetch too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from helpers.paths import REPOSITORY

from clients.client import Client, ClientFailed, Comparison, Trial, equal_rows
from clients.exports import Tried, megatron_on_texts

MAX_NEW_TOKENS = 40
# Log-likelihoods of some characters, in float32: sums in another order differ by so much.
CLOSE = 1e-3

SUMS = [(2, 2), (3, 5), (11, 6)]
GSM8K = [
    {
        "question": f"Ann has {a} pens and gets {b} more. How many?",
        "answer": f"{a + b}\n#### {a + b}",
    }
    for a, b in SUMS
]
MMLU = [
    {"question": f"What is {a} + {b}?", "choices": [str(a + b + k) for k in range(4)], "answer": 0}
    for a, b in [*SUMS, (4, 4), (9, 1)]
]
MATH = [
    {
        "problem": f"Compute ${a}+{b}$.",
        "solution": f"It is $\\boxed{{{a + b}}}$.",
        "level": "Level 1",
    }
    for a, b in SUMS
]
HUMANEVAL = [
    {
        "prompt": f'def {name}(a, b):\n    """{text}"""\n',
        "test": f"def check(f):\n    assert f(2, 3) == {value}\n",
        "entry_point": name,
    }
    for name, text, value in [("add", "The sum.", 5), ("larger", "The larger one.", 3)]
]


def compare(trial: Trial) -> list[Comparison]:
    """Likelihoods and texts against Megatron-core's; and against the backbone's, bit by bit."""
    tried = trial.exports.served
    tasks = _write_tasks(trial)
    out = trial.folder / "out"
    printed = _run_both(trial, tried.export, _backbone(trial, tried), tasks, out)
    export, backbone = _read(out / "export"), _read(out / "backbone")
    truth = megatron_on_texts(tried, _asked(export), trial.folder)
    return [
        *(_against_megatron(task, rows, truth[task]) for task, rows in export.items()),
        equal_rows("export and backbone, bit by bit", _by_document(backbone), _by_document(export)),
        _no_difference(printed),
        _code_is_refused(trial, tried.export),
    ]


def _write_tasks(trial: Trial) -> Path:
    """A folder of YAML files in the harness's format."""
    code = "import lm_eval; print(lm_eval.__path__[0])"
    templates = Path(trial.run(["-c", code]).strip()) / "tasks"
    folder = trial.folder / "tasks"
    folder.mkdir()
    lines = {"gsm8k": GSM8K, "mmlu": MMLU, "math": MATH, "humaneval": HUMANEVAL}
    for name, rows in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    length = f"max_gen_toks: {MAX_NEW_TOKENS}, do_sample: false"
    own = {
        "gsm8k": [
            f"include: {templates}/gsm8k/gsm8k.yaml",
            f"generation_kwargs: {{until: ['Question:', 'e'], {length}}}",
            "num_fewshot: 1",
        ],
        "mmlu": [f"include: {templates}/mmlu/default/mmlu_anatomy.yaml", "num_fewshot: 2"],
        "math": [
            f"include: {templates}/hendrycks_math/hendrycks_math_algebra.yaml",
            f"generation_kwargs: {{until: ['Problem:'], {length}}}",
        ],
        "humaneval": [
            "unsafe_code: true",
            "output_type: generate_until",
            "test_split: test",
            'doc_to_text: "{{prompt}}"',
            'doc_to_target: "{{test}}"',
            f'generation_kwargs: {{until: ["\\nclass", "\\ndef", "\\n#"], {length}}}',
            "metric_list: [{metric: exact_match}]",
        ],
    }
    for name, text in own.items():
        file = folder / f"{name}.jsonl"
        splits = ", ".join(f"{split}: {file}" for split in ("train", "dev", "test"))
        common = [
            f"task: local_{name}",
            "dataset_path: json",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {{{splits}}}}}",
        ]
        (folder / f"{name}.yaml").write_text("\n".join([*text, *common]) + "\n")
    return folder


def _run_both(trial: Trial, export: Path, backbone: Path, tasks: Path, out: Path) -> str:
    """The table that `scripts/text_kept` prints."""
    return trial.run(
        [
            *(REPOSITORY / "scripts" / "text_kept", export, backbone, "--out", out),
            *("--model_args", "dtype=float32", "--device", "cpu", "--batch_size", "2"),
            *("--tasks", ",".join(f"local_{file.stem}" for file in sorted(tasks.glob("*.yaml")))),
            *("--include_path", tasks, "--confirm_run_unsafe_code"),
        ]
    )


def _no_difference(printed: str) -> Comparison:
    """Export and backbone hold the same language model."""
    rows = [line for line in printed.splitlines() if line.startswith("| local_")]
    num_equal = sum(line.endswith("| +0.0000 | 0.0000 |") for line in rows)
    found = f"{num_equal} of {len(rows)} differences are 0"
    return Comparison("`scripts/text_kept`, export and backbone", found, num_equal == len(rows) > 0)


def _read(out: Path) -> dict[str, Any]:
    """By task and document: what was asked, and what the harness got."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("samples_local_*.jsonl")):
        task = file.name.removeprefix("samples_local_").partition("_20")[0]
        for line in file.read_text().splitlines():
            row = json.loads(line)
            asked = [list(pair.values()) for pair in row["arguments"].values()]
            given = row["resps"]
            found.setdefault(task, {})[str(row["doc_id"])] = {"asked": asked, "given": given}
    return found


def _backbone(trial: Trial, tried: Tried) -> Path:
    """The language model that the export was made of, with the tokenizer beside it."""
    folder = Path(shutil.copytree(tried.language, trial.folder / "backbone"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tried.export / name, folder / name)
    return folder


def _by_document(found: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{task} {number}": row["given"]
        for task, rows in found.items()
        for number, row in rows.items()
    }


def _asked(found: dict[str, Any]) -> dict[str, list]:
    """Of every task the texts: [context, continuation], or [prompt, number of new tokens]."""
    return {
        task: [
            [text, second if isinstance(second, str) else MAX_NEW_TOKENS]
            for row in rows.values()
            for text, second in row["asked"]
        ]
        for task, rows in found.items()
    }


def _against_megatron(task: str, rows: dict[str, Any], truth: list) -> Comparison:
    """Texts up to where the harness ends them; log-likelihoods up to `CLOSE`."""
    asked = [pair for row in rows.values() for pair in row["asked"]]
    given = [answer for row in rows.values() for answer in row["given"]]
    assert len(asked) == len(given) == len(truth)
    num_equal, largest = 0, 0.0
    for (_, second), (answer,), true in zip(asked, given, truth):
        if isinstance(second, str):
            error = abs(float(answer[0]) - true["likelihood"])
            largest = max(largest, error)
            num_equal += error < CLOSE and (answer[1] == "True") == true["is_greedy"]
        else:
            text = true["text"]
            for end in second["until"]:
                text = text.split(end)[0]
            num_equal += answer == text
    is_text = "text" in truth[0]
    assert not is_text or sum(map(len, map(str, given))) > len(given) * 10, given
    found = f"{num_equal} of {len(given)} equal"
    if not is_text:
        found += f", to {largest:.0e}" if largest else ", bit by bit"
    kind = "texts" if is_text else "log-likelihoods"
    return Comparison(f"{task}: {kind} against Megatron-core", found, num_equal == len(given))


def _code_is_refused(trial: Trial, export: Path) -> Comparison:
    """A task that runs the model's code needs the harness's own flag."""
    command = ["-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={export},trust_remote_code=True"]
    command += ["--tasks", "local_humaneval", "--include_path", str(trial.folder / "tasks")]
    try:
        trial.run(command)
    except ClientFailed as error:
        refused = "confirm_run_unsafe_code" in str(error)
        return Comparison("code without its flag", "refused" if refused else str(error), refused)
    return Comparison("code without its flag", "was run", False)


CLIENTS = [Client("lm-eval", ("lm-eval[hf]",), "lm_eval", compare)]
