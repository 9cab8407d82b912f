"""`nvlm plan` as a user calls it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import spawn
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.errors import ConfigError

SFT = ["plan", "nvlm_d_72b/sft", "--gpus", "128"]
SFT += ["parallel.sequence=no", "parallel.layout=even"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*SFT, *arguments])
    if result.exception:
        raise result.exception
    return result.output


def test_keys_that_scripts_use():
    found = json.loads(run("--json"))
    assert found["fits"] is True
    assert 40e9 < found["peak_bytes"] < found["memory_bytes"]
    assert 0 < found["mfu"] < 1 and found["step_seconds"] > 0
    assert found["samples_per_second"] == pytest.approx(128 / found["step_seconds"])
    assert [len(stage["decoder_layers"][0]) for stage in found["stages"]] == [20] * 4
    assert max(stage["bytes"]["at_step"] for stage in found["stages"]) == found["peak_bytes"]
    names = {assumption["name"] for assumption in found["assumptions"]}
    assert {"matmul_efficiency", "link_bandwidth", "memory_overhead"} <= names
    assert sum(found["losses"].values()) == pytest.approx(1)


def test_overrides_reach_the_plan():
    slow = json.loads(run("--json", "--assume", "matmul_efficiency=0.1", "--tiles", "2"))
    assert slow["mfu"] < 0.1 and slow["work"]["num_tiles"] == 2
    small = json.loads(run("--json", "--gpu", "a100-40gb", "parallel.virtual_pipeline=5"))
    assert small["fits"] is False and small["layout"]["virtual_pipeline"] == 5


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = run()
    assert max(map(len, text.splitlines())) <= width
    for words in ("fits:", "MFU", "GB of a GPU", "assumptions", "GPU-hours", "0: 0-19"):
        assert words in text


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--gpu", "h1000"], "--gpu h1000: no such card; did you mean h100-80gb?"),
        (["--assume", "speed=3"], "--assume speed: no such assumption"),
        (["--tiles", "99"], "--tiles 99: a sequence of 3200 tokens has from 0 to 12 tiles"),
        (["parallel.tensor=3"], "parallel.tensor 3 does not divide"),
        (["parallel.tensor=4", "parallel.pipeline=5"], "128 processes do not fit"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], expected: str):
    with pytest.raises(ConfigError) as caught:
        run(*arguments)
    assert expected in str(caught.value)


def test_outside_a_clone_and_without_torch(tmp_path: Path):
    program = (
        "import sys\nfrom nvlm.cli import run_app\n"
        f"sys.argv = ['nvlm', *{SFT!r}, '--json']\nrun_app()\n"
        "slow = {'torch', 'megatron', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=spawn.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gpus"] == 128


def test_a_teacher_that_is_elsewhere_is_said(tmp_path: Path):
    """Its memory is in tests/train/test_teacher.py."""
    teacher = f"train.distill={{teacher: {tmp_path / 'gone'}}}"
    result = CliRunner().invoke(app, ["plan", "tiny/sft", "--gpus", "1", teacher])
    assert result.exit_code == 0, result.output
    assert re.search(r"the teacher's memory is not counted: .*gone", result.output)
    assert "teacher" in result.output.partition("GB of a GPU")[2]
