"""A grid on Slurm: arrays whose tasks are the runs, each as scripts/slurm/train.sbatch runs one.

DIR/slurm/submit.sh         submits all of it, each array after the one that it needs
DIR/slurm/train.sbatch      a task: the run of its line in stages.tsv or cells.tsv
DIR/slurm/commands.sbatch   a task: all commands of its number: what is asked of a run, or the
                            conversion of first weights
DIR/slurm/*.tsv             a line for each run, or for each command
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nvlm
from nvlm.ablate.cells import Cell, Run
from nvlm.ablate.existing import all_initial, all_runs, is_made, state_of
from nvlm.ablate.grid_file import Grid
from nvlm.ablate.tasks import conversion_arguments, make_tasks
from nvlm.errors import ConfigError
from nvlm.files import write_text

SLURM_FOLDER = "slurm"
_TRAIN_SCRIPT = Path(nvlm.__file__).resolve().parents[1] / "scripts" / "slurm" / "train.sbatch"
_GPUS_PER_NODE = 8
_TRAIN = """#!/usr/bin/env bash
# Written by `nvlm ablate`. A task of this array trains the run of its line in the file TASKS, as
# {script} trains one run: it saves before its time is up, and is queued again.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@900
set -euo pipefail
tasks="$1"
IFS=$'\\t' read -r run_dir config < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$tasks")
exec bash {script} "$run_dir" "$config"
"""
_COMMANDS = """#!/usr/bin/env bash
# Written by `nvlm ablate`. A task of this array gives all commands of the file TASKS whose lines
# begin with its number, on one node. What is answered already is not asked again.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
set -euo pipefail
tasks="$1"
image=()
if [ -n "${{NVLM_CONTAINER:-}}" ]; then
    image=(--container-image "$NVLM_CONTAINER" --container-workdir "$PWD")
    image+=(--container-mounts "$PWD:$PWD${{NVLM_MOUNTS:+,$NVLM_MOUNTS}}")
fi
while IFS=$'\\t' read -r -a words; do
    if [ "${{words[0]}}" = "$SLURM_ARRAY_TASK_ID" ] && [ ! -e "${{words[1]}}" ]; then
        srun --kill-on-bad-exit=1 "${{image[@]}}" torchrun --standalone \\
            --nproc-per-node "${{SLURM_GPUS_ON_NODE:-gpu}}" -m nvlm "${{words[@]:2}}" </dev/null
    fi
done <"$tasks"
"""


def write_slurm(grid: Grid, name: str, place: Path, cells: Sequence[Cell]) -> Path | None:
    """Write scripts for all that is not done; returns the one to run. None: all is done.

    Raises:
        ConfigError: the repository's script is not there, or `processes` fill no whole nodes.
    """
    if not _TRAIN_SCRIPT.is_file():
        raise ConfigError(
            f"--slurm needs {_TRAIN_SCRIPT.name} of the repository's scripts/slurm, which a wheel "
            "does not have: clone the repository and run scripts/install there"
        )
    nodes, gpus = _nodes(grid)
    questions = [task for task in make_tasks(cells, grid.evaluate) if task.out]
    asked = {task.folder for task in questions if not task.is_done()}
    last = [run for cell in cells for run in cell.runs.values()]
    to_run = [run for run in last if run.folder in asked or not state_of(run).is_done]
    stages = [run for run in all_runs(cells) if run not in last and not state_of(run).is_done]
    initial = [one for one in all_initial(cells) if not is_made(one, cells)]
    if not to_run and not stages:
        return None
    folder = place / SLURM_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    script = shlex.quote(str(_TRAIN_SCRIPT))
    write_text(folder / "train.sbatch", _TRAIN.format(script=script))
    write_text(folder / "commands.sbatch", _COMMANDS.format())
    write_text(
        folder / "weights.tsv",
        _lines(
            [str(number), str(one.folder), *conversion_arguments(one)]
            for number, one in enumerate(initial)
        ),
    )
    write_text(folder / "stages.tsv", _lines(_run_line(run) for run in stages))
    write_text(folder / "cells.tsv", _lines(_run_line(run) for run in to_run))
    numbers = {run.folder: number for number, run in enumerate(to_run)}
    left = [task for task in questions if task.folder in asked]
    write_text(
        folder / "questions.tsv",
        _lines([str(numbers[t.folder]), str(t.out), *t.arguments] for t in left),
    )
    submit = folder / "submit.sh"
    counts = {"weights": len(initial), "stages": len(stages), "cells": len(to_run)}
    write_text(submit, _submit(name, folder, nodes, gpus, counts, bool(left)))
    submit.chmod(0o755)
    return submit


def _nodes(grid: Grid) -> tuple[int, int]:
    """(nodes, GPUs of each)."""
    if grid.processes <= _GPUS_PER_NODE:
        return 1, grid.processes
    if grid.processes % _GPUS_PER_NODE:
        raise ConfigError(
            f"processes {grid.processes}: more than a node's {_GPUS_PER_NODE}, and not whole nodes"
        )
    return grid.processes // _GPUS_PER_NODE, _GPUS_PER_NODE


def _run_line(run: Run) -> list[str]:
    return [str(run.folder), str(run.beside(".yaml"))]


def _lines(rows: Iterable[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _submit(
    name: str, folder: Path, nodes: int, gpus: int, counts: Mapping[str, int], asks: bool
) -> str:
    """counts: name of each array that trains, or converts first weights, in their order -> its
    tasks."""
    place = shlex.quote(str(folder))
    lines = [
        "#!/usr/bin/env bash",
        "# Written by `nvlm ablate`: submits the grid's runs, each array after what it needs.",
        "# Arguments are options of sbatch for all of them, such as --account. A run that fails",
        "# holds back those that need it: put right what its log says, and give `nvlm ablate",
        "# --slurm` again. `nvlm ablate` without --slurm then prints the table.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"folder={place}",
        f"options=(--parsable --job-name={shlex.quote(f'nvlm-{name}')} --gpus-per-node={gpus}",
        '    "--output=$folder/%x-%A_%a.log" "$@")',
    ]
    after = ""
    for array, count in counts.items():
        if not count:
            continue
        size = "" if array == "weights" else f"--nodes={nodes} "
        script = "commands" if array == "weights" else "train"
        lines += [
            f'{array}="$(sbatch {size}--array=0-{count - 1} {after}"${{options[@]}}" \\',
            f'    "$folder/{script}.sbatch" "$folder/{array}.tsv")"',
        ]
        after = f'"--dependency=afterok:${{{array}%%;*}}" '
    if counts["cells"]:
        lines.append('echo "cells: job $cells"')
    if asks:
        lines += [
            f'questions="$(sbatch --array=0-{counts["cells"] - 1} \\',
            '    "--dependency=aftercorr:${cells%%;*}" "${options[@]}" \\',
            '    "$folder/commands.sbatch" "$folder/questions.tsv")"',
            'echo "questions: job $questions"',
        ]
    return "\n".join(lines) + "\n"
