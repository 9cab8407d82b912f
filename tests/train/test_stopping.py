"""What asks a training to stop besides signals, and `nvlm stop`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvlm import stop_requests
from nvlm.errors import TrainingError
from nvlm.stop_requests import STOPPED, Stopped
from nvlm.train.events import note_event
from nvlm.train.ownership import OWNERS_FOLDER, own_run_folder
from nvlm.train.stop_command import stop_run
from nvlm.train.stopping import Clock, stopping_at_once

# Owns the folder, and ends as asked when it sees the file; without torch it starts at once.
RUN = """
import sys, time
from pathlib import Path
from nvlm.train.events import note_event
from nvlm.train.ownership import own_run_folder
folder, kind = Path(sys.argv[1]), sys.argv[2]
with own_run_folder(folder) as ownership:
    print("owned", flush=True)
    while not ownership.stop_file.exists():
        time.sleep(0.02)
    if kind:
        note_event(folder, kind, 7, "stopped by nvlm stop after step 7 of 9")
"""


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator:
    started = []

    def start(kind: str = "stop", folder: Path = tmp_path / "run") -> subprocess.Popen:
        command = [sys.executable, "-c", RUN, str(folder), kind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_run_is_asked_and_waited_for(start_run, tmp_path, capsys):
    run = start_run()
    stop_run(tmp_path / "run", wait=True)
    asked, ended = capsys.readouterr().out.splitlines()
    assert f"run: asked process {run.pid} on " in asked and ", started " in asked
    assert ended == f"{tmp_path / 'run'}: stopped by nvlm stop after step 7 of 9"
    assert run.wait(10) == 0
    assert not (tmp_path / "run" / OWNERS_FOLDER).exists()


def test_the_run_of_a_stage_is_found(start_run, tmp_path, capsys):
    note_event(_folder(tmp_path / "all" / "pretrain"), "end", 3, "all 3 steps are done")
    run = start_run(folder=tmp_path / "all" / "sft")
    stop_run(tmp_path / "all", wait=False)
    assert f"sft: asked process {run.pid} on " in capsys.readouterr().out
    assert run.wait(10) == 0


def test_a_run_that_ends_otherwise_is_no_success(start_run, tmp_path):
    start_run(kind="")
    with pytest.raises(TrainingError, match="has ended, but not as asked"):
        stop_run(tmp_path / "run", wait=True)


def test_a_killed_run_is_not_waited_for(start_run, tmp_path, capsys):
    run = start_run()
    run.kill()
    run.wait()
    stop_run(tmp_path / "run", wait=True)
    said = capsys.readouterr().out
    assert "nothing runs here: its last run, " in said and f"process {run.pid} on " in said
    assert "is gone; no step of it was saved" in said


def test_where_nothing_runs_the_last_that_is_known_is_said(tmp_path, capsys):
    note_event(_folder(tmp_path / "run"), "end", 3, "all 3 steps are done")
    stop_run(tmp_path / "run", wait=True)
    last = "nothing runs here; the last that is known: all 3 steps are done"
    assert last in capsys.readouterr().out


def test_a_request_is_for_the_run_that_was_asked_only(tmp_path):
    with own_run_folder(tmp_path / "run") as ownership:
        stop_run(tmp_path / "run", wait=False)
        assert ownership.stop_file.exists()
        (ownership.path.parent / "00000002.json").write_text("{}")  # it was taken over
    with pytest.raises(TrainingError, match="is in use"), own_run_folder(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run" / OWNERS_FOLDER).iterdir()] == ["00000002.json"]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_the_last_step_and_its_save_end_within_the_limit():
    for num_saves in (1, 2):
        clock = Clock(limit_seconds=100.0, started=0.0)
        now = 10.0  # the start took so long
        while not clock.is_last_step(now, 3.0, num_saves):
            now += 7.0
        assert now + 7.0 + num_saves * 3.0 <= 100.0 < now + 2 * 7.0 + num_saves * 3.0
    # A step that took longer is expected again; before the first save one is guessed.
    clock = Clock(limit_seconds=100.0, started=0.0)
    assert [clock.is_last_step(now, 10.0) for now in (0.0, 20.0, 51.0)] == [False, False, True]
    clock = Clock(limit_seconds=100.0, started=0.0)
    assert [clock.is_last_step(now, None) for now in (0.0, 94.0, 96.0)] == [False, True, True]
    assert not Clock(limit_seconds=None, started=0.0).is_last_step(1e9, None)
    # There is no time at all.
    assert Clock(limit_seconds=1.0, started=0.0).is_last_step(5.0, None)


def test_before_the_first_step_a_stop_is_noted_with_what_was_saved(tmp_path):
    folder = _folder(tmp_path / "checkpoints" / "step_00000012").parent.parent
    code = None
    try:
        with stopping_at_once(folder):
            assert stop_requests.taking() == "at once"
            raise Stopped("SIGTERM")
    except SystemExit as stopped:
        code = stopped.code
    assert code == STOPPED
    assert stop_requests.taking() == "nothing"
    (event,) = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["step"]) == ("stop", 12)
    assert event["fields"] == {"reason": "SIGTERM", "exit_code": STOPPED}


def test_torchrun_starting_a_stopped_run_again_is_no_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    for reason, restarts, is_stopped in [
        ("nvlm stop", "1", True),
        ("nvlm stop", "0", False),  # the same command, another time
        ("SIGTERM", "1", False),  # torchrun's own, where a machine joins
    ]:
        note_event(tmp_path, "stop", 3, "stopped", reason=reason, job="job")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        begun = False
        try:
            with stopping_at_once(tmp_path):
                begun = True
        except Stopped:
            assert is_stopped
        assert begun != is_stopped
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    note_event(tmp_path, "stop", 3, "stopped", reason="nvlm stop", job="job")
    with stopping_at_once(tmp_path):
        pass


def test_it_needs_no_torch(tmp_path):
    note_event(tmp_path, "end", 3, "all 3 steps are done")
    code = "import sys; from nvlm.train.stop_command import stop_run; from pathlib import Path\n"
    code += "stop_run(Path(sys.argv[1]), True); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
