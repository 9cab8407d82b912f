"""What docs/launch.md starts runs with: the Slurm script, and the file for Kubernetes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from helpers import spawn
from helpers.paths import REPOSITORY

from nvlm.config import load_config

SCRIPT = REPOSITORY / "scripts" / "slurm" / "train.sbatch"
# Slurm is not here: its commands, for one node with two processes.
SRUN = """#!/usr/bin/env bash
while [ "$1" != torchrun ] && [ "$1" != nvlm ]; do shift; done
if [ "$1" = torchrun ]; then shift; exec python -m torch.distributed.run "$@"; fi
shift
exec python -m nvlm "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi
"""


def start_job(folder: Path, *arguments: str) -> subprocess.Popen:
    """The batch script as Slurm starts it, its output in FOLDER/log."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = spawn.environment() | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REQUEUED": str(folder / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=(folder / "log").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_how_the_slurm_script_is_used():
    ran = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "sbatch [OPTION]... scripts/slurm/train.sbatch RUN_DIR CONFIG" in ran.stderr


@pytest.mark.parallel
@pytest.mark.slow
def test_a_job_whose_time_ends_is_queued_again_and_goes_on(demo_data, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [
        str(run),
        "tiny/sft",
        f"data.root={demo_data}",
        "train.steps=60",
        "train.global_batch_size=2",
        "data.num_workers=0",
    ]
    job = start_job(tmp_path, *arguments)
    try:
        deadline = time.monotonic() + 240
        while not (run / "metrics.jsonl").exists() or len(spawn.metrics(run)) < 2:
            assert time.monotonic() < deadline and job.poll() is None, log.read_text()
            time.sleep(0.1)
        os.kill(job.pid, signal.SIGUSR1)  # as Slurm does before the time is up: to the script alone
        assert job.wait(120) == 0, log.read_text()
        steps_before = len(spawn.metrics(run))
        assert 2 <= steps_before < 60
        assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
        job = start_job(tmp_path, *arguments)
        assert job.wait(300) == 0, log.read_text()
    finally:
        spawn.kill(job)
    assert [line["step"] for line in spawn.metrics(run)] == list(range(1, 61))
    assert f"step_{steps_before:08d} at step {steps_before}" in log.read_text()
    assert (tmp_path / "requeued").read_text().count("requeue") == 1


@pytest.mark.slow
@pytest.mark.parallel
def test_a_job_with_a_broken_configuration_ends_before_it_trains(tmp_path):
    job = start_job(tmp_path, str(tmp_path / "run"), "tiny/sft", "data.root=/nowhere")
    try:
        assert job.wait(120) == 1
    finally:
        spawn.kill(job)
    said = (tmp_path / "log").read_text()
    assert "error: data: data.root /nowhere: no .tar files" in said
    assert "not started: nvlm doctor found something wrong" in said
    assert not (tmp_path / "requeued").exists()


def test_the_file_for_kubernetes_agrees_with_itself():
    text = (REPOSITORY / "scripts" / "kubernetes" / "train.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    command = container["command"]
    nodes, processes = spec["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert spec["parallelism"] == nodes
    assert f"--nnodes={nodes}" in command
    assert f"--nproc-per-node={processes}" in command
    assert service["metadata"]["name"] == pod["subdomain"]
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:29500" in command
    name, *overrides = command[command.index("train") + 1 :]
    config = load_config(name, overrides, world_size=nodes * processes)
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    assert stop == ["nvlm", "stop", config.run.dir, "--wait"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
