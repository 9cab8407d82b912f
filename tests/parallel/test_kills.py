"""Whatever is killed whenever, the run goes on where it was, and nothing of the killed stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers.layout_runs import short_and_long
from helpers.spawn import kill, run_or_fail, start, start_warm
from helpers.stopped_runs import arguments, assert_bit_equal, num_steps
from helpers.warm import Job

pytestmark = pytest.mark.parallel
LAYOUT = "parallel.tensor=2"
VICTIMS = ("a rank", "torchrun", "a loader worker", "a rank while a checkpoint is written")
SECONDS_TO_END = 30


class Started:
    """All processes of a job that were seen, and what their names are found in."""

    def __init__(self, job: Job | subprocess.Popen):
        self._job = psutil.Process(job.pid)
        self.seen: dict[int, psutil.Process] = {job.pid: self._job}

    def look(self) -> None:
        with suppress(psutil.Error):
            for process in self._job.children(recursive=True):
                self.seen.setdefault(process.pid, process)

    def running(self) -> list[psutil.Process]:
        found = []
        for process in self.seen.values():
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def folders(self) -> list[str]:
        """Temporary ones, named by the processes that made them."""
        found = Path(tempfile.gettempdir()).glob("nvlm-*-*")
        return [path.name for path in found if int(path.name.split("-")[1], 16) in self.seen]


def shared_memory() -> set[str]:
    """Segments and semaphores of torch and of Python; those of this machine's other tests pass."""
    names = os.listdir("/dev/shm")
    return {name for name in names if name.startswith(("torch_", "sem.", "psm_"))}


def victim_of(job: Job | subprocess.Popen, what: str, draw: random.Random) -> int | None:
    """The process to kill; None: there is none now."""
    if what == "torchrun":
        return job.pid
    with suppress(psutil.Error):
        ranks = psutil.Process(job.pid).children()
        workers = [worker for rank in ranks for worker in rank.children()]
        candidates = workers if what == "a loader worker" else ranks
        return draw.choice(candidates).pid if candidates else None
    return None


def kill_once(
    options: list[str], folder: Path, log: Path, what: str, draw: random.Random
) -> tuple[bool, Started]:
    """Start the run and kill `what` at a random moment; whether that came before its end."""
    # Orphaned ranks are for a cold start: see `helpers.warm`.
    is_cold = what == "torchrun"
    job = start(2, *options, log=log) if is_cold else start_warm(2, "-m", "nvlm", *options, log=log)
    started = Started(job)
    try:
        # Into the start, or some steps later and somewhere in a step.
        wanted = num_steps(folder) + draw.choice([0, 1, 1, 2, 3])
        delay = draw.uniform(0, 0.4)
        deadline = time.monotonic() + 180
        while job.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            started.look()
            is_time = num_steps(folder) >= wanted
            if "checkpoint" in what:
                is_time = is_time and any((folder / "checkpoints").glob(".*.writing"))
                delay = 0.0
            if is_time:
                time.sleep(delay)
                victim = victim_of(job, what, draw)
                if victim is not None:
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                    break
            time.sleep(0.01)
        was_killed = job.wait(SECONDS_TO_END + 60) != 0
        deadline = time.monotonic() + SECONDS_TO_END
        while started.running():
            assert time.monotonic() < deadline, (what, started.running(), log.read_text()[-3000:])
            time.sleep(0.05)
        return was_killed, started
    finally:
        kill(job)


def kills_end_bit_equal(victims: list[str], steps: int, seed: int, demo_data: Path, root: Path):
    """Kill each in some order, and compare the run with one that nothing happened to."""
    truth, folder, log = root / "truth", root / "run", root / "log"
    settings = [LAYOUT, "checkpoint.every=2", "checkpoint.keep=2"]
    run_or_fail(2, *arguments(truth, demo_data, steps, *settings), log=root / "truth.log")
    draw = random.Random(seed)
    before = shared_memory()
    victims = draw.sample(victims, len(victims))
    killed: Counter[str] = Counter()
    options = arguments(folder, demo_data, steps, *settings)
    for what in victims:
        was_killed, started = kill_once(options, folder, log, what, draw)
        killed[what] += was_killed
        assert not started.folders(), what
    run_or_fail(2, *options, log=log)
    assert_bit_equal(folder, truth)
    assert killed.total() == len(victims), (killed, log.read_text()[-3000:])
    left = [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    assert not left
    assert not (folder / ".owners").exists()
    new = shared_memory() - before
    assert not [name for name in new if not name.startswith("torch_")], new
    return killed


@pytest.mark.parametrize("victim", short_and_long(["a loader worker"], ["torchrun"]))
def test_a_kill_ends_bit_equal(victim: str, demo_data: Path, tmp_path: Path, fault):
    """Ranks are killed in test_resume.py; what torchrun's end leaves is in test_run_ends.py too."""
    kills_end_bit_equal([victim], steps=8, seed=6, demo_data=demo_data, root=tmp_path)
    outcome = "nothing of it stays after 30 s; started again, the run ends bit-equal"
    fault(what=f"{victim} is killed (SIGKILL)", layout="TP2", outcome=outcome)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_end_bit_equal(demo_data: Path, tmp_path: Path, fault):
    killed = kills_end_bit_equal([*VICTIMS] * 5, 70, seed=1, demo_data=demo_data, root=tmp_path)
    assert set(killed) == set(VICTIMS)
    for what, number in killed.items():
        fault(
            what=f"{what} is killed (SIGKILL), at random moments of one run",
            layout="TP2",
            outcome=f"{number} times, among 20 kills; the run ends bit-equal, no step is missing "
            "or twice in `metrics.jsonl`",
        )
