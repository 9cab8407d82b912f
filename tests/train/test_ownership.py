"""One run folder, one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nvlm.errors import TrainingError
from nvlm.train import ownership
from nvlm.train.ownership import (
    OWNERS_FOLDER,
    STALE_SECONDS,
    Member,
    find_owner,
    own_run_folder,
)

# A process that owns the folder until it is ended, without torch: it starts within a second.
OWN = """
import sys, time
from pathlib import Path
from nvlm.train.ownership import own_run_folder
with own_run_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


def start_owner(folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", OWN, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture
def owner(tmp_path: Path):
    process = start_owner(tmp_path / "run")
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()


def owner_file(folder: Path) -> Path:
    (path,) = (folder / OWNERS_FOLDER).glob("*.json")
    return path


def edit(folder: Path, silent_seconds: float = 0, **changes) -> None:
    """Change what the owner says of its main process, and when it last gave a sign of life."""
    path = owner_file(folder)
    record = json.loads(path.read_text())
    record["members"][0] |= changes
    path.write_text(json.dumps(record))
    then = time.time() - silent_seconds
    os.utime(path, (then, then))


def refusal(folder: Path) -> str:
    with pytest.raises(TrainingError) as caught, own_run_folder(folder):
        pass
    return str(caught.value)


def test_a_live_owner_is_named(owner, tmp_path, fault):
    message = refusal(tmp_path / "run")
    assert f"{tmp_path / 'run'} is in use by another run: process {owner.pid} on " in message
    assert os.uname().nodename in message
    assert "started " in message
    # However the folder is written.
    (tmp_path / "link").symlink_to("run")
    assert "in use" in refusal(tmp_path / "link")
    assert "in use" in refusal(Path(os.path.relpath(tmp_path / "run")))
    # A stopped process lives.
    owner.send_signal(signal.SIGSTOP)
    edit(tmp_path / "run", silent_seconds=10 * STALE_SECONDS)
    assert "in use" in refusal(tmp_path / "run")
    fault(
        what="a second run starts in the folder of one that lives",
        layout="any",
        outcome="refused, with the first one's process, host and age",
    )


def test_a_killed_owner_is_taken_over(owner, tmp_path, capsys, fault):
    owner.kill()
    owner.wait()
    with own_run_folder(tmp_path / "run") as ownership:
        assert ownership.path.name == "00000002.json"
        ownership.check()
    assert f"process {owner.pid} on" in capsys.readouterr().err
    assert not (tmp_path / "run" / OWNERS_FOLDER).exists()
    fault(
        what="a run starts in the folder of one that was killed",
        layout="any",
        outcome="it takes the folder over, and says from whom",
    )


def test_a_process_that_got_its_number_is_not_it(owner, tmp_path, capsys):
    edit(tmp_path / "run", birth="12345")
    with own_run_folder(tmp_path / "run"):
        pass
    assert "is gone" in capsys.readouterr().err


@pytest.mark.parametrize("what", [{"place": "other-kernel pid:[1]"}, {"place": "x", "process": 1}])
def test_elsewhere_signs_of_life_count(what, owner, tmp_path, capsys):
    edit(tmp_path / "run", silent_seconds=50, host="far", **what)
    message = refusal(tmp_path / "run")
    assert "on far" in message
    assert "last sign of life 50 s ago" in message
    assert "try again in 71 s" in message
    edit(tmp_path / "run", silent_seconds=STALE_SECONDS + 1, host="far", **what)
    with own_run_folder(tmp_path / "run"):
        pass
    assert "gave no sign of life for 2 minutes" in capsys.readouterr().err


def test_ranks_that_outlive_the_main_process(owner, tmp_path):
    path = owner_file(tmp_path / "run")
    record = json.loads(path.read_text())
    gone = replace(Member.this(), process=2**22 - 1)
    record["members"] = [asdict(gone), *record["members"]]
    path.write_text(json.dumps(record))
    message = refusal(tmp_path / "run")
    assert f"process {gone.process} on" in message
    assert f"is gone, but process {owner.pid} of it still runs" in message


def test_torchrun_restarting_is_the_same_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    owner = start_owner(tmp_path / "run")
    assert owner.stdout.readline() == "owned\n"
    owner.kill()
    owner.wait()
    edit(tmp_path / "run", host="far", place="elsewhere")
    assert "in use" in refusal(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with own_run_folder(tmp_path / "run"):
        pass
    assert "was restarted by torchrun" in capsys.readouterr().err


def test_a_machine_that_joins_makes_a_new_attempt_of_the_same_job(tmp_path, monkeypatch, capsys):
    """No torchrun counts that as a restart; the store of all its attempts is the same."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "far",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    owner = start_owner(tmp_path / "run")
    assert owner.stdout.readline() == "owned\n"
    owner.kill()
    owner.wait()
    edit(tmp_path / "run", host="far", place="elsewhere")
    with monkeypatch.context() as patch:
        patch.setenv("MASTER_PORT", "29501")
        assert "in use" in refusal(tmp_path / "run")
    with own_run_folder(tmp_path / "run"):
        pass
    assert "was restarted by torchrun" in capsys.readouterr().err


def test_a_copy_of_a_killed_runs_folder_is_free(owner, tmp_path):
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert "in use" in refusal(tmp_path / "copy")  # the copied file is as new as a sign of life
    edit(tmp_path / "copy", silent_seconds=STALE_SECONDS + 1)
    with own_run_folder(tmp_path / "copy"):
        assert "in use" in refusal(tmp_path / "run")


def test_of_many_starts_at_once_one_wins(tmp_path):
    starts = [start_owner(tmp_path / "run") for _ in range(5)]
    try:
        losers = []
        deadline = time.monotonic() + 60
        while len(losers) < 4 and time.monotonic() < deadline:
            losers = [process for process in starts if process.poll() is not None]
            time.sleep(0.05)
        assert len(losers) == 4
        assert all("in use" in process.stderr.read() for process in losers)
        (winner,) = (process for process in starts if process.poll() is None)
        assert winner.stdout.readline() == "owned\n"
    finally:
        for process in starts:
            process.kill()
            process.wait()


def test_a_run_that_was_taken_over_ends(tmp_path, fault):
    with own_run_folder(tmp_path / "run") as ownership:
        (ownership.path.parent / "00000002.json").write_text("{}")
        with pytest.raises(TrainingError, match="writes nothing more"):
            ownership.check()
    # What the other run wrote stays.
    assert (tmp_path / "run" / OWNERS_FOLDER / "00000002.json").exists()
    fault(
        what="a run was suspended for so long that another one has its folder",
        layout="any",
        outcome="it writes nothing more, and ends",
    )


def test_nothing_is_left(tmp_path):
    with pytest.raises(KeyError), own_run_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "run")
    assert "cannot be written to" in message
    assert "Not a directory" in message
    assert "give another run.dir" in refusal(tmp_path / "file")


@pytest.mark.parametrize("look", ["_now_on_disk", "_identity"])
def test_a_run_may_end_while_it_is_looked_at(look, owner, tmp_path, monkeypatch):
    """Its folder, which was empty otherwise, is removed between any two looks."""
    real = getattr(ownership, look)

    def gone(folder: Path):
        shutil.rmtree(tmp_path / "run")
        return real(folder)

    monkeypatch.setattr(ownership, look, gone)
    found = find_owner(tmp_path / "run")
    assert found is not None and found.gone == "the run in it has just ended"
