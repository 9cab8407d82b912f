"""What a run folder keeps through resumes: records and settings are moved, never lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm.config import load_config
from nvlm.errors import CheckpointError
from nvlm.train.run_folder import (
    check_nothing_is_missing,
    note_saved,
    open_records,
    open_run_folder,
    read_run_id,
)


def config_of(folder: Path, *overrides: str):
    return load_config("configs/run/tiny/sft.yaml", [f"run.dir={folder}", *overrides])


def write_steps(path: Path, *steps: int) -> None:
    path.write_text("".join(f'{{"step": {step}, "loss": 1}}\n' for step in steps))


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_records_of_steps_that_run_again_are_moved(tmp_path):
    path, replaced = tmp_path / "metrics.jsonl", tmp_path / "metrics.replaced.jsonl"
    write_steps(path, 1, 2, 3, 4)
    with path.open("ab") as file:
        file.write(b'{"step": 5, "lo\xff')  # a kill, or the disk
    file, note = open_records(path, 2)
    file.close()
    assert note == f"{path}: 3 lines after step 2 moved to {replaced.name}"
    assert steps_of(path) == [1, 2]
    assert replaced.read_bytes().splitlines()[2] == b'{"step": 5, "lo\xff'
    # The next time nothing is moved, and what was moved stays.
    file, note = open_records(path, 2)
    file.close()
    assert note is None
    assert len(replaced.read_bytes().splitlines()) == 3


def test_a_kill_while_records_are_moved_brings_none_twice(tmp_path):
    path, replaced = tmp_path / "metrics.jsonl", tmp_path / "metrics.replaced.jsonl"
    write_steps(path, 1, 2, 3)
    write_steps(replaced, 2, 3)
    open_records(path, 1)[0].close()
    assert steps_of(replaced) == [2, 3]
    assert steps_of(path) == [1]


def test_a_last_line_without_its_end_is_a_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    file, note = open_records(path, 2)
    file.write('{"step": 3}\n')
    file.close()
    assert note is None
    assert steps_of(path) == [1, 2, 3]


def test_settings_of_before_are_kept(tmp_path):
    assert open_run_folder(config_of(tmp_path), 0) == []
    run_id = read_run_id(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    assert open_run_folder(config_of(tmp_path), 3) == []
    (note,) = open_run_folder(config_of(tmp_path, "train.steps=7"), 3)
    assert "config.step_00000003.yaml" in note
    assert (tmp_path / "config.step_00000003.yaml").read_text() == before
    open_run_folder(config_of(tmp_path, "train.steps=8"), 3)
    assert "steps: 7" in (tmp_path / "config.step_00000003-2.yaml").read_text()
    assert "steps: 8" in (tmp_path / "config.yaml").read_text()
    assert read_run_id(tmp_path) == run_id


def test_two_runs_have_two_ids(tmp_path):
    for name in ("a", "b"):
        open_run_folder(config_of(tmp_path / name), 0)
    assert read_run_id(tmp_path / "a") != read_run_id(tmp_path / "b")
    # A run of an earlier version keeps the id that its tracker has.
    open_run_folder(config_of(tmp_path / "c"), 5)
    assert read_run_id(tmp_path / "c") == str(tmp_path / "c").replace("/", "-")


def test_metrics_past_a_save_without_a_checkpoint_are_refused(tmp_path):
    config = config_of(tmp_path, "checkpoint.every=10")
    open_run_folder(config, 0)
    write_steps(tmp_path / "metrics.jsonl", *range(1, 15))
    check_nothing_is_missing(tmp_path, config)  # killed before or while the first was saved
    run_id = read_run_id(tmp_path)
    note_saved(tmp_path, 10)
    assert read_run_id(tmp_path) == run_id
    with pytest.raises(CheckpointError, match="goes to step 14, and there is no checkpoint"):
        check_nothing_is_missing(tmp_path, config)


def test_metrics_past_a_save_are_refused_where_earlier_versions_did_not_note_it(tmp_path):
    config = config_of(tmp_path, "checkpoint.every=10")
    open_run_folder(config, 0)
    (tmp_path / "run.json").write_text('{"id": "a"}')
    write_steps(tmp_path / "metrics.jsonl", *range(1, 11))
    check_nothing_is_missing(tmp_path, config)
    write_steps(tmp_path / "metrics.jsonl", *range(1, 12))
    with pytest.raises(CheckpointError, match="goes to step 11, and there is no checkpoint"):
        check_nothing_is_missing(tmp_path, config_of(tmp_path, "checkpoint.every=5"))
