"""Start real `torchrun` jobs for tests, cold or warm, with a hard time limit."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from helpers import warm
from helpers.paths import REPOSITORY


def command(num_processes: int, *arguments: str) -> list[str]:
    """`nvlm ARGUMENTS` alone, or under torchrun with `num_processes` processes on this machine."""
    module = ["-m", "nvlm", *arguments]
    if num_processes == 1:
        return [sys.executable, *module]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(num_processes), *module]


def environment() -> dict[str, str]:
    """Of a job that may be a script of this package: it imports its neighbours as `helpers`."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONWARNINGS": "ignore",
    }


def start(num_processes: int, *arguments: str, log: Path) -> subprocess.Popen:
    """Start `nvlm ARGUMENTS` from nothing, in its own process group, its output going to `log`."""
    return subprocess.Popen(
        command(num_processes, *arguments),
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@cache
def _server() -> warm.Server:
    return warm.Server(environment(), REPOSITORY)


def start_warm(num_processes: int, *program: str | Path, log: Path) -> warm.Job:
    """Start `python PROGRAM…`, under torchrun for several processes, with everything imported."""
    words = [str(word) for word in program]
    return _server().start(words, environment(), REPOSITORY, log, num_processes)


def run_commands(text: str, folder: Path, environment: dict[str, str]) -> str | None:
    """Run `nvlm` and torchrun as lines for a shell name them, in `folder`, each to its end.

    Returns:
        what they wrote to stdout; None, and nothing is run: these are not all lines.
    """
    commands = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
    if not all(words[:1] in (["nvlm"], ["torchrun"]) for words in commands):
        return None
    output, errors = folder / "stdout", folder / "stderr"
    output.write_text("")
    for words in commands:
        num_processes, program = 1, ["-m", *words]
        if words[0] == "torchrun":
            option, number, *program = words[1:]
            assert option == "--nproc-per-node"
            num_processes = int(number)
        errors.write_text("")
        job = _server().start(program, environment, folder, output, num_processes, errors)
        try:
            code = job.wait(300)
        finally:
            kill(job)
        assert code == 0, f"{words}\n{output.read_text()[-3000:]}\n{errors.read_text()[-3000:]}"
    return output.read_text()


def run_program(
    num_processes: int, *program: str | Path, log: Path, timeout_seconds: float = 240
) -> int:
    """Run a program to its end and return its exit code; kill all of it at the time limit."""
    process = start_warm(num_processes, *program, log=log)
    try:
        return process.wait(timeout_seconds)
    finally:
        kill(process)


def run(num_processes: int, *arguments: str, log: Path, timeout_seconds: float = 240) -> int:
    """`run_program` for `nvlm ARGUMENTS`."""
    program = ("-m", "nvlm", *arguments)
    return run_program(num_processes, *program, log=log, timeout_seconds=timeout_seconds)


def run_or_fail(num_processes: int, *arguments: str, log: Path, timeout_seconds: float = 240):
    """`run`, failing the test with the end of the log unless the job succeeds."""
    code = run(num_processes, *arguments, log=log, timeout_seconds=timeout_seconds)
    assert code == 0, f"exit code {code}\n{log.read_text()[-4000:]}"


def run_program_or_fail(
    num_processes: int, *program: str | Path, log: Path, timeout_seconds: float = 300
) -> str:
    """`run_program`, failing the test unless it succeeds; returns what it printed."""
    code = run_program(num_processes, *program, log=log, timeout_seconds=timeout_seconds)
    printed = log.read_text()
    assert code == 0, f"exit code {code}\n{printed[-20000:]}"
    return printed


def kill(process: subprocess.Popen | warm.Job) -> None:
    """Kill a job and every process it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def metrics(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
