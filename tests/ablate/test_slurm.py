"""What `nvlm ablate --slurm` writes: read by shellcheck, run by stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import spawn
from helpers.grids import write_grid
from helpers.paths import REPOSITORY

from nvlm.ablate.grid import prepare_slurm
from nvlm.errors import ConfigError

STAGES = str(REPOSITORY / "configs/run/tiny/stages.yaml")
AXES = {"tags": {"none": {"stages.sft.stage.tile_tags": "none"}}}
FIRST_WEIGHTS = {
    "vision": str(REPOSITORY / "assets/tiny/internvit"),
    "language": str(REPOSITORY / "assets/tiny/qwen2"),
}
# Numbers its jobs, and notes how it was called.
SBATCH = """#!/usr/bin/env bash
echo "$@" >> "$NOTES"
wc -l < "$NOTES"
"""
SRUN = """#!/usr/bin/env bash
while [ "$1" != torchrun ] && [ "$1" != nvlm ]; do shift; done
if [ "$1" = torchrun ]; then shift; exec python -m torch.distributed.run "$@"; fi
shift
exec python -m nvlm "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo localhost
"""


@pytest.fixture
def place(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name has a space, with the scripts of a grid in it."""
    folder = tmp_path / "a grid"
    folder.mkdir()
    questions = {"data_root": str(demo_data), "limit_per_task": 1, "max_new_tokens": 2}
    path = write_grid(
        folder / "g.yaml", demo_data, base=STAGES, axes=AXES, seeds=[1, 2], evaluate=questions,
        first_weights=FIRST_WEIGHTS,
    )  # fmt: skip
    monkeypatch.chdir(folder)
    prepare_slurm(str(path), folder / "cells", [])
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return folder / "cells" / "slurm"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_passes(place: Path):
    scripts = [place / name for name in ("train.sbatch", "commands.sbatch", "submit.sh")]
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_arrays_wait_for_what_they_need(place: Path, tmp_path: Path):
    ran = subprocess.run(
        [place / "submit.sh", "--account=a b"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    weights, stages, cells, questions = (tmp_path / "notes").read_text().splitlines()
    assert "--array=0-1 --parsable" in weights and weights.endswith("weights.tsv")
    assert "--nodes=1 --array=0-1 --dependency=afterok:1 --parsable" in stages
    assert "--account=a b" in stages
    assert "--array=0-3 --dependency=afterok:2 --parsable" in cells
    assert "--array=0-3 --dependency=aftercorr:3 --parsable" in questions
    folder = place.parent
    runs = [line.split("\t") for line in (place / "cells.tsv").read_text().splitlines()]
    assert [Path(run).relative_to(folder / "cells") for run, _ in runs] == [
        Path(cell, seed) for cell in ("base", "tags=none") for seed in ("seed_1", "seed_2")
    ]
    assert all(Path(config).is_file() for _, config in runs)
    asked = [line.split("\t") for line in (place / "questions.tsv").read_text().splitlines()]
    assert {words[0]: words[3] for words in asked} == {
        str(number): run for number, (run, _) in enumerate(runs)
    }


def test_processes_are_whole_nodes(demo_data: Path, tmp_path: Path):
    values = {
        "processes": 12,
        "set": {"train.global_batch_size": "12", "data.blend": "{digits: 1}"},
    }
    path = write_grid(tmp_path / "g.yaml", demo_data, rank_by="train/loss", **values)
    with pytest.raises(ConfigError, match="processes 12: more than a node's 8, and not whole"):
        prepare_slurm(str(path), None, [])


@pytest.mark.slow
@pytest.mark.parallel
def test_tasks_train_and_ask(place: Path, tmp_path: Path):
    commands, train = "commands.sbatch", "train.sbatch"
    tasks = [(commands, "weights.tsv"), (train, "stages.tsv"), (train, "cells.tsv")]
    for script, file in [*tasks, (commands, "questions.tsv")]:
        environment = spawn.environment() | {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_ARRAY_TASK_ID": "0",
        }
        log = tmp_path / f"{file}.log"
        with log.open("w") as output:
            command = ["bash", str(place / script), str(place / file)]
            ran = subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=240
            )
        assert ran.returncode == 0, log.read_text()[-3000:]
    cell = place.parent / "cells/base/seed_1"
    assert [line["step"] for line in spawn.metrics(cell)] == [1, 2]
    (answers,) = cell.parent.glob("seed_1.answers-*.jsonl")
    assert answers.read_text().count("\n") == 8
