"""A run that is asked to stop saves after its step, says so with a code of its own, and goes on."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from helpers.spawn import run_or_fail, start_warm
from helpers.stopped_runs import arguments, assert_bit_equal, losses, num_steps, run_until, send
from helpers.warm import Job

from nvlm.stop_requests import STOPPED
from nvlm.train.events import read_events
from nvlm.train.stop_command import stop_run

pytestmark = pytest.mark.parallel
STEPS = 18
# Nobody asks twice.
ASKED = "saving at the end of this step; a second one ends at once"
AT_ONCE = "run.max_minutes=0.001"  # over before the first step: it takes one


@pytest.fixture(scope="module")
def truth(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "run"
    run_or_fail(1, *arguments(folder, demo_data, STEPS), log=folder.with_suffix(".log"))
    return folder


def stopped_after(folder: Path, reason: str) -> int:
    """The step after which the run stopped; it is saved, and the run's last event says why."""
    *_, last = read_events(folder)
    assert (last.kind, last.fields["reason"], last.fields["exit_code"]) == ("stop", reason, STOPPED)
    assert (folder / "checkpoints" / f"step_{last.step:08d}").is_dir()
    assert num_steps(folder) == last.step < STEPS
    assert not (folder / ".owners").exists()
    return last.step


def test_one_process_stops_in_every_way_and_ends_bit_equal(truth, demo_data, tmp_path, fault):
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, STEPS)

    def command(job: Job) -> None:
        del job
        stop_run(folder, wait=True)

    code = run_until(1, [*options, AT_ONCE], folder, log, None)
    assert code == STOPPED, log.read_text()
    assert stopped_after(folder, "run.max_minutes") == 1
    for act, reason in [
        (send(signal.SIGTERM), "SIGTERM"),
        (send(signal.SIGINT), "SIGINT"),
        (send(signal.SIGUSR1), "SIGUSR1"),
        (command, "nvlm stop"),
    ]:
        code = run_until(1, options, folder, log, act)
        assert code == STOPPED, log.read_text()
        step = stopped_after(folder, reason)
        last = log.read_text().splitlines()[-1]
        assert last.startswith(f"stopped by {reason} after step {step} of {STEPS}, which is saved")
    said = log.read_text()
    assert [said.count(f"{name}: {ASKED}") for name in ("SIGTERM", "SIGINT", "SIGUSR1")] == [1] * 3
    assert "Traceback" not in said and "warn" not in said.lower()
    run_or_fail(1, *options, log=log)
    assert_bit_equal(folder, truth)
    kinds = [event.kind for event in read_events(folder) if event.kind != "save"]
    assert kinds == ["start", "stop", *["resume", "stop"] * 4, "resume", "end"]
    outcome = f"saved after the step, exit code {STOPPED}; started again, it ends bit-equal"
    for what in ("SIGTERM", "SIGINT", "SIGUSR1", "`nvlm stop`", "`run.max_minutes` is over"):
        fault(what=f"a run is asked to stop: {what}", layout="one process", outcome=outcome)


def test_ranks_stop_together_and_go_on_at_another_layout(
    truth, demo_data, tmp_path, measure, fault
):
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, STEPS)
    layouts = [
        ("TP2", "parallel.tensor=2", send(signal.SIGTERM), "SIGTERM"),  # to torchrun
        ("DP2", "parallel.tensor=1", send(signal.SIGUSR1, 2, rank=1), "SIGUSR1"),
        ("PP2", "parallel.pipeline=2", lambda job: stop_run(folder, wait=False), "nvlm stop"),
    ]
    for _, layout, act, reason in layouts:
        # torchrun ends with its own code, which its ranks' codes do not change.
        assert run_until(2, [*options, layout], folder, log, act) == 1
        step = stopped_after(folder, reason)
        said = f"stopped by {reason} after step {step} of {STEPS}, which is saved"
        assert len(re.findall(f"^{said}", log.read_text(), re.MULTILINE)) == 1
    printed = log.read_text()
    # torchrun that was not asked itself tells the reason for each rank, and no failure.
    assert printed.count(f"(exit code {STOPPED}: not a failure)") >= 4
    assert "error: " not in printed
    run_or_fail(2, *options, "parallel.tensor=2", log=log)
    ours, theirs = losses(folder), losses(truth)
    assert [record[:2] for record in ours] == [record[:2] for record in theirs]
    error = max(abs(a[2] - b[2]) / b[2] for a, b in zip(ours, theirs, strict=True))
    what = "loss of a step, stopped at TP2, DP2 and PP2, ended at TP2"
    measure(what, "an uninterrupted run of one process", error, 1e-5)
    for (name, _, _, reason), source in zip(
        layouts, ("to torchrun", "to one rank", ""), strict=True
    ):
        words = f"{reason} {source}".strip() if source else f"`{reason}`"
        fault(
            what=f"a run is asked to stop: {words}",
            layout=name,
            outcome="all ranks save after the same step; at another layout it goes on with the "
            "same samples, losses within 1e-5",
        )


def test_a_second_signal_ends_at_once(demo_data, tmp_path, fault):
    """Where a training only asks itself, the next signal does not."""
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, 100_000, "checkpoint.every=100000")

    def twice(job: Job) -> None:
        # Stopped, it takes both when it goes on, before it ends its step.
        send(signal.SIGSTOP)(job)
        send(signal.SIGTERM)(job)
        send(signal.SIGINT)(job)
        send(signal.SIGCONT)(job)

    code = run_until(1, options, folder, log, twice)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT), log.read_text()
    assert "ended, and not saved" in log.read_text()
    assert not list((folder / "checkpoints").glob("step_*"))
    assert not (folder / ".owners").exists()
    fault(
        what="a run is asked to stop: two signals",
        layout="one process",
        outcome="ends at once with 128 + the signal's number; goes on from its last checkpoint",
    )


@pytest.mark.slow
def test_torchrun_does_not_start_a_stopped_run_again(demo_data, tmp_path, fault):
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, STEPS, AT_ONCE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    job = start_warm(1, *torchrun, "--nproc-per-node", "1", "-m", "nvlm", *options, log=log)
    assert job.wait(120) == 1
    assert stopped_after(folder, "run.max_minutes") == 1
    assert "stopped by run.max_minutes after step 1 of" in log.read_text()
    fault(
        what="torchrun --max-restarts starts the ranks of a stopped run again",
        layout="one process",
        outcome="they end with the same code, without a step",
    )
