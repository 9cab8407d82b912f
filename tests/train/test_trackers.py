"""Trackers, with their real packages: runs that go on, names that do not collide, refusals.

Weights & Biases runs offline, MLflow in a file. `scripts/install dev` brings neither (200 MB):
`pip install -c constraints.txt -e '.[wandb,mlflow]'`.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from nvlm.config import RunConfig, load_config
from nvlm.errors import ConfigError
from nvlm.train.log import RunLog
from nvlm.train.preflight import check_before_start
from nvlm.train.run_folder import open_run_folder, read_run_id

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None or find_spec("sqlalchemy") is None,
    reason="mlflow-skinny and sqlalchemy are not installed",
)


def config_in(folder: Path, *more: str) -> RunConfig:
    overrides = [f"run.dir={folder}", "run.name=same name", "log.tensorboard=false", *more]
    return load_config("configs/run/tiny/sft.yaml", overrides)


def take_steps(config: RunConfig, first: int, last: int, failed: bool = False) -> str:
    """As a training that starts or resumes; returns what is printed."""
    console = Console(width=500)
    open_run_folder(config, first - 1)
    with console.capture() as printed:
        log = RunLog(config, first - 1, console)
        for step in range(first, last + 1):
            log.write_between(step, {"loss": 1 / step, "loss/a & b": 2.0})
        log.write_between(last, {"validation/loss": 3.0})
        log.close(failed)
    return printed.get()


@needs_wandb
def test_wandb_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("first", "second"):
        config = config_in(tmp_path / name, "log.wandb_project=p")
        check_before_start(config)
        take_steps(config, 1, 2)
        take_steps(config, 3, 4)
    ids = [read_run_id(tmp_path / name) for name in ("first", "second")]
    assert ids[0] != ids[1]
    for name, run_id in zip(("first", "second"), ids):
        files = sorted((tmp_path / name / "wandb").glob("offline-run-*/run-*.wandb"))
        assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
        rows = [row for file in files for row in wandb_rows(file)]
        assert [row["_step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
        assert [row["loss"] for row in rows if "loss" in row] == [1, 1 / 2, 1 / 3, 1 / 4]
        assert [row["_step"] for row in rows if "validation/loss" in row] == [2, 4]


def wandb_rows(file: Path) -> list[dict]:
    """What would be sent to the server: protocol buffers in LevelDB's log format.

    A header of 7 bytes, then blocks of 32 KiB; each piece of a record has a checksum (4 bytes), its
    length (2) and whether it is whole (1), the first (2), a middle (3) or the last (4) of several.
    """
    from wandb.proto import wandb_internal_pb2 as messages  # pyright: ignore

    data, at, rows, record = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0:  # what is left of a block is too short for a piece
            at = (at // 32768 + 1) * 32768
            continue
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if 32768 - at % 32768 < 7:
            at = (at // 32768 + 1) * 32768
        if kind in (1, 4):
            message = messages.Record.FromString(record)
            record = b""
            if items := message.history.item:
                rows.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
    return rows


@needs_wandb
def test_wandb_without_a_login_or_a_server(tmp_path: Path):
    """Each in a process of its own: wandb reads the environment once."""
    keys = [f"run.dir={tmp_path / 'run'}", "log.wandb_project=p"]
    program = (
        "from nvlm.config import load_config; from nvlm.train.preflight import check_before_start;"
        f"check_before_start(load_config('configs/run/tiny/sft.yaml', {keys}))"
    )
    address = f"http://127.0.0.1:{closed_port()}"
    cases = {"not logged in": {}, f"{address} does not answer: ": {"WANDB_API_KEY": "a" * 40}}
    for expected, variables in cases.items():
        printed = run_program(program, tmp_path, WANDB_BASE_URL=address, **variables)
        assert f"ConfigError: log.wandb_project p: {expected}" in printed
    assert not (tmp_path / "run").exists()


def run_program(program: str, home: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    ).stderr


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow makes its tables once, in seconds."""
    return f"log.mlflow_uri=sqlite:///{tmp_path_factory.mktemp('mlflow')}/m.db"


@needs_mlflow
def test_mlflow_goes_on_in_its_run(tmp_path: Path, store: str):
    from mlflow import MlflowClient

    more = ["log.mlflow_experiment=e", store]
    for name in ("first", "second"):
        config = config_in(tmp_path / name, *more)
        check_before_start(config)
        assert not take_steps(config, 1, 2, failed=True)
    resumed = config_in(tmp_path / "first", *more, "train.steps=777")
    assert "config.step_00000002" not in take_steps(resumed, 3, 4)

    client = MlflowClient(store.partition("=")[2])
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    runs = {run.data.tags["nvlm.run"]: run for run in found}
    first, second = (runs.pop(str(read_run_id(tmp_path / name))) for name in ("first", "second"))
    assert not runs
    assert [run.info.run_name for run in (first, second)] == ["same name"] * 2
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FAILED"]

    def values(run, key: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(run.info.run_id, key)
        return sorted((metric.step, metric.value) for metric in history)

    assert values(first, "loss") == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert values(second, "loss") == [(1, 1), (2, 1 / 2)]
    assert values(first, "loss/a _ b") == [(step, 2.0) for step in (1, 2, 3, 4)]
    assert values(first, "validation/loss") == [(2, 3.0), (4, 3.0)]
    steps = str(config.train.steps)
    assert first.data.params["train.steps"] == second.data.params["train.steps"] == steps
    assert first.data.tags["train.steps"] == "777" and "train.steps" not in second.data.tags


@needs_mlflow
def test_mlflow_that_lost_a_run(tmp_path: Path, store: str):
    config = config_in(tmp_path / "run", "log.mlflow_experiment=other", store)
    assert "a new one begins after step 5" in take_steps(config, 6, 6)


@needs_mlflow
@pytest.mark.parametrize("comes_back", [True, False])
def test_mlflow_that_takes_nothing_for_a_while(tmp_path: Path, store: str, comes_back: bool):
    from mlflow import MlflowClient

    config = config_in(tmp_path / "run", f"log.mlflow_experiment=away {comes_back}", store)
    client = MlflowClient(store.partition("=")[2])
    open_run_folder(config, 0)
    file = io.StringIO()
    log = RunLog(config, 0, Console(file=file, width=500))
    experiment = client.get_experiment_by_name(str(config.log.mlflow_experiment)).experiment_id
    run_id = client.search_runs([experiment])[0].info.run_id
    client.delete_run(run_id)  # nothing can be written to it
    log.write_between(1, {"loss": 1.0})
    deadline = time.monotonic() + 60
    while "MLflow takes no numbers at present, training goes on: " not in file.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.write_between(2, {"loss": 2.0})
    if comes_back:
        client.restore_run(run_id)
    log.close()
    lost = "MLflow did not get the numbers from step 1 on: metrics.jsonl has all"
    assert (lost in file.getvalue()) == (not comes_back)
    if comes_back:
        history = client.get_metric_history(run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0)]


@needs_mlflow
def test_mlflow_without_an_address_or_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    address = f"http://127.0.0.1:{closed_port()}"
    no_database = tmp_path / "m.db"
    no_database.write_text("x" * 10000)
    cases = {
        "": "Set log.mlflow_uri or MLFLOW_TRACKING_URI",
        address: f"MLflow at {address}: [Errno 111] Connection refused",
        "sqlite:////proc/nvlm/m.db": "MLflow at sqlite:////proc/nvlm/m.db: ",
        f"sqlite:///{no_database}": "MLflow at sqlite:///",
        "gopher://x": "MLflow at gopher://x: ",
    }
    for uri, expected in cases.items():
        with pytest.raises(ConfigError) as raised:
            check_before_start(
                config_in(
                    tmp_path / "run",
                    "log.mlflow_experiment=e",
                    *([f"log.mlflow_uri={uri}"] if uri else []),
                )
            )
        assert expected in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_mlflow_that_is_not_installed(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the package mlflow is not installed: .*nvlm\[mlflow\]"):
        check_before_start(config_in(tmp_path / "run", "log.mlflow_experiment=e"))
