"""Time from the command to the first step of the tiny run, beside an earlier version, in one run.

    python benchmarks/startup.py BEFORE [AFTER] [--rounds N] [--processes N ...]

BEFORE and AFTER are git revisions (AFTER: the working tree where not given). Measured from outside,
the same way for both: `nvlm train configs/run/tiny/sft.yaml train.steps=1` is started (through
torchrun where it is several processes), its lines are read as they come, and the clock and the
processor time of all its processes, those of the data workers among them, are noted at two:

    ready        the line after the model, its optimizer and the data's order stand
    first step   the line of the first step, which a worker has read and the model has computed

Versions take turns, each with the sample index still to be built (`cold`) and there (`warm`). Files
are in the system's memory and Python's own are compiled: a run before the first round does that.
Printed are medians, the ratio of medians, and the middle half of the ratios of neighbours. On a
machine that others use, processor time is the steadier of the two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]
RUN = "configs/run/tiny/sft.yaml"
MARKS = {"ready": "starting from ", "first step": "step 1/1 "}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Moment:
    """Seconds since the command was given."""

    wall: float
    processor: float  # of all processes of the command together


def checkout(stack: ExitStack, revision: str | None) -> Path:
    """A folder with the files of `revision`; the working tree where none is given."""
    if revision is None:
        return REPOSITORY
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "source"
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(folder), revision], check=True)
    stack.callback(subprocess.run, [*git, "remove", "--force", str(folder)], check=True)
    return folder


def environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source)}


def build_data(source: Path, work: Path) -> Path:
    command = [sys.executable, "-m", "nvlm", "data", "build-demo", str(work / "data")]
    subprocess.run(
        command, cwd=source, env=environment(source), check=True, stdout=subprocess.DEVNULL
    )
    return work / "data"


def processor_seconds(command: int) -> float:
    """Of a process and all below it that run, and of those that ended and were waited for."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(entry.name)] = int(fields[1])
        # Of itself and of children that it waited for, each user and system.
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    # Not by session: torchrun gives each rank one of its own.
    family, found = {command}, {command}
    while found:
        found = {child for child, parent in parents.items() if parent in found} - family
        family |= found
    return sum(ticks.get(member, 0) for member in family) / TICKS


def run(source: Path, run_dir: Path, num_processes: int, settings: list[str]) -> dict[str, Moment]:
    """Train one step of `source`'s version; when each of `MARKS` was printed."""
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(num_processes), "-m"]
    command += ["nvlm", "train", RUN, "train.steps=1", f"run.dir={run_dir}", *settings]
    seen: dict[str, Moment] = {}
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=source, env=environment(source), stdout=subprocess.PIPE, stderr=errors,
            text=True, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            for name, beginning in MARKS.items():
                if line.startswith(beginning):
                    wall = time.perf_counter() - started
                    seen[name] = Moment(wall, processor_seconds(process.pid))
        process.wait()
        errors.seek(0)
        if process.returncode or seen.keys() != MARKS.keys():
            sys.exit(f"{source}: {' '.join(command)}\n{errors.read()[-3000:]}")
    return seen


def measure(
    sources: list[Path], work: Path, num_processes: int, settings: list[str], num_rounds: int
) -> dict[str, list[list[dict[str, Moment]]]]:
    """State of the index -> of each version, in their order, its runs."""
    taken: dict[str, list[list[dict[str, Moment]]]] = {
        state: [[] for _ in sources] for state in ("cold", "warm")
    }
    for number in range(-1, num_rounds):
        # Each finds the machine as the one before left it: take turns in being first.
        order = [*enumerate(sources)]
        for version, source in order[:: 1 if number % 2 else -1]:
            index = work / f"index-{version}"
            shutil.rmtree(index, ignore_errors=True)
            for runs in taken.values():
                run_dir = work / "run"
                shutil.rmtree(run_dir, ignore_errors=True)
                seen = run(source, run_dir, num_processes, [*settings, f"data.index_dir={index}"])
                if number >= 0:
                    runs[version].append(seen)
    return taken


def add_rows(table: Table, num_processes: int, taken: dict) -> None:
    for state, (before, after) in taken.items():
        for mark in MARKS:
            for name, clock in (("CPU", "processor"), ("wall", "wall")):
                old, new = (
                    [getattr(seen[mark], clock) for seen in runs] for runs in (before, after)
                )
                ratios = sorted(b / a for a, b in zip(old, new, strict=True))
                middle = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                medians = statistics.median(old), statistics.median(new)
                table.add_row(
                    str(num_processes), state, mark, name, *(f"{m:.2f}" for m in medians),
                    f"{medians[1] / medians[0]:.2f}", f"{middle[0]:.2f} to {middle[1]:.2f}",
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--settings", nargs="*", default=[], help="KEY=VALUE")
    given = parser.parse_args()
    columns = (
        "ranks",
        "index",
        "until",
        "clock",
        "before, s",
        "after, s",
        "ratio",
        "middle half",
    )
    table = Table(*columns)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sources = [checkout(stack, revision) for revision in (given.before, given.after)]
        data = build_data(sources[1], work)
        for num_processes in given.processes:
            settings = [f"data.root={data}", *given.settings]
            if num_processes > 1:
                settings.append(f"parallel.tensor={num_processes}")
            taken = measure(sources, work, num_processes, settings, given.rounds)
            add_rows(table, num_processes, taken)
    Console().print(table)


if __name__ == "__main__":
    main()
