"""What a run folder keeps beside its checkpoints, through every resume: nothing of it is lost.

`run.json` holds the run's id, `config.yaml` the settings in use, `metrics.jsonl` and
`skipped.jsonl` one record for each step and each skipped sample, `between_steps.jsonl` what is
measured between steps. Settings that were replaced are
kept as `config.step_XXXXXXXX.yaml` (the step up to which they held), and records of steps that run
again in `metrics.replaced.jsonl`.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from nvlm.checkpoint_files import CONFIG_FILE, read_config
from nvlm.config.compose import save_config, to_yaml
from nvlm.config.schema import RunConfig
from nvlm.errors import CheckpointError
from nvlm.files import free_name, json_line, write_bytes, write_text

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.jsonl"
BETWEEN_STEPS_FILE = "between_steps.jsonl"
GENERATIONS_FILE = "generations.jsonl"
BENCHMARK_ANSWERS_FILE = "benchmark_answers.jsonl"


def read_run_id(folder: Path) -> str | None:
    """The id of the run in `folder`; None before its first step or where it is not readable."""
    try:
        return str(json.loads((folder / RUN_FILE).read_text())["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def open_run_folder(config: RunConfig, resumed_step: int) -> list[str]:
    """Note the run's id and its settings before its first step; returns what to tell the user.

    One process calls this. A run of an earlier version gets the id that its tracker knows it by.
    """
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    notes = []
    if read_run_id(folder) is None:
        run_id = config.run.dir.replace("/", "-") if resumed_step else uuid.uuid4().hex[:16]
        write_text(folder / RUN_FILE, json_line({"id": run_id, "saved": resumed_step}))
    settings = folder / CONFIG_FILE
    if settings.exists() and settings.read_bytes() != to_yaml(config).encode():
        kept = free_name(folder, f"config.step_{resumed_step:08d}", ".yaml")
        settings.rename(kept)
        notes.append(f"{settings} has other settings now; those up to here are in {kept.name}")
    save_config(config, settings)
    return notes


def check_nothing_is_missing(folder: Path, config: RunConfig) -> None:
    """To be called where `folder` has no checkpoint.

    Raises:
        CheckpointError: its metrics go past a step that was saved. Records of a run that ended
            before its first checkpoint are none of that; `open_records` keeps them.
    """
    last = max((step for _, step in _records(folder / METRICS_FILE) if step), default=0)
    if last and _was_saved(folder, config, last):
        raise CheckpointError(
            f"{folder}: {METRICS_FILE} goes to step {last}, and there is no checkpoint in "
            f"{folder / 'checkpoints'}: put the newest step_* folder back to continue, or give "
            "another run.dir to start over. Nothing was changed"
        )


def _was_saved(folder: Path, config: RunConfig, last: int) -> bool:
    """Whether a run whose last step was `last` has written a checkpoint."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return json.loads((folder / RUN_FILE).read_text())["saved"] > 0
    # Earlier versions did not note it, and a checkpoint was whole before the next step began.
    settings = [config]
    with suppress(CheckpointError, OSError):
        settings.append(read_config(folder))
    every = [s.checkpoint.every for s in settings if isinstance(s.checkpoint.every, int)]
    return last > max(every, default=0)


def note_saved(folder: Path, step: int) -> None:
    """Note that the run has a checkpoint: should there be none later, then something is missing."""
    record = {}
    with suppress(OSError, ValueError):
        record = json.loads((folder / RUN_FILE).read_text())
    write_text(folder / RUN_FILE, json_line({**record, "saved": step}))


def open_records(path: Path, step: int) -> tuple[TextIOWrapper, str | None]:
    """Open `path` for appending records of the steps after `step`.

    Lines of later steps, which run again, and lines that a kill cut off move to
    `NAME.replaced.jsonl`; the note says how many they are, None: there were none.
    """
    kept, replaced = [], []
    for line, recorded in _records(path):
        is_old = recorded is None or recorded > step
        (replaced if is_old else kept).append(line)
    note = None
    if replaced:
        beside = path.with_name(f"{path.stem}.replaced{path.suffix}")
        moved = b"".join(replaced)
        # A kill after this and before the rename would bring the same lines again.
        if not (beside.exists() and beside.read_bytes().endswith(moved)):
            with beside.open("ab") as file:
                file.write(moved)
                file.flush()
                os.fsync(file.fileno())
        note = f"{path}: {len(replaced)} lines after step {step} moved to {beside.name}"
    if path.exists() and path.read_bytes() != b"".join(kept):
        write_bytes(path, b"".join(kept))
    return path.open("a", encoding="utf-8"), note


def _records(path: Path) -> list[tuple[bytes, int | None]]:
    """Lines of `path`, each with the step that it is of; None: it is not a whole record."""
    if not path.exists():
        return []
    found: list[tuple[bytes, int | None]] = []
    for line in path.read_bytes().splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, LookupError, TypeError):
            step = None
        found.append((line + b"\n", step if isinstance(step, int) else None))
    return found
