"""A run's numbers for MLflow, sent by a thread: no step waits for a server.

What a server that is gone does not take waits, and is sent when it is back. `metrics.jsonl` has
all of it in any case.
"""

from __future__ import annotations

import json
import posixpath
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.config.schema import RunConfig
from nvlm.train.run_folder import read_run_id
from nvlm.train.sink import Say, Sink
from nvlm.train.trackers import connect_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - an optional extra
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

# Of the run in MLflow: the id that nvlm knows it by, in `run.json`.
RUN_TAG = "nvlm.run"
# What MLflow takes in one request, and how long a name and a value may be.
_MAX_METRICS, _MAX_PARAMETERS = 1000, 100
_MAX_NAME, _MAX_VALUE = 250, 500
_SECONDS_BETWEEN_TRIES = 10.0
_SECONDS_TO_CLOSE = 8.0


def open_mlflow(config: RunConfig, resumed_step: int, say: Say) -> Sink:
    """The run of the folder's id in `log.mlflow_experiment`, made where there is none.

    Raises:
        ConfigError: see `connect_mlflow`.
    """
    client, experiment = connect_mlflow(config.log)
    name = str(config.log.mlflow_experiment)
    experiment = experiment or client.create_experiment(name)
    run_id = read_run_id(Path(config.run.dir))
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
    settings = dict(_settings(config.model_dump(mode="json")))
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
        # Parameters cannot change; what differs now stands in tags of their names.
        for key, value in settings.items():
            if run.data.params.get(key) != value:
                client.set_tag(run.info.run_id, key, value)
    else:
        run = client.create_run(experiment, tags={RUN_TAG: str(run_id)}, run_name=config.run.name)
        _log_settings(client, run.info.run_id, settings)
        if resumed_step:
            say(f"MLflow has no run {run_id} in {name}: a new one begins after step {resumed_step}")
    sender = _Sender(client, run.info.run_id, say)
    return Sink(sender.write, sender.close)


class _Sender:
    """Sends metrics in order from a thread of its own."""

    def __init__(self, client: MlflowClient, run_id: str, say: Say):
        self._client = client
        self._run_id = run_id
        self._say = say
        self._waiting: deque[Metric] = deque()
        self._has_news = threading.Event()
        self._closing = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._send, daemon=True, name="mlflow")
        self._thread.start()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        self._waiting.extend(Metric(_name(k), float(v), now, step) for k, v in numbers.items())
        self._has_news.set()

    def close(self, failed: bool) -> None:
        self._failed = failed
        self._closing.set()
        self._has_news.set()
        self._thread.join(_SECONDS_TO_CLOSE)
        if self._waiting:
            first = self._waiting[0].step
            self._say(f"MLflow did not get the numbers from step {first} on: metrics.jsonl has all")

    def _send(self) -> None:
        is_gone = False
        while True:
            self._has_news.wait()
            self._has_news.clear()
            is_last = self._closing.is_set()
            try:
                self._send_waiting()
                if is_last:
                    status = "FAILED" if self._failed else "FINISHED"
                    self._client.set_terminated(self._run_id, status)
                is_gone = False
            except Exception as error:  # MLflow's own, its database's, a lost connection
                if not is_gone:
                    reason = " ".join(str(error).split())[:200]
                    self._say(f"MLflow takes no numbers at present, training goes on: {reason}")
                is_gone = True
                self._has_news.set()
                self._closing.wait(0 if is_last else _SECONDS_BETWEEN_TRIES)
            if is_last:
                return

    def _send_waiting(self) -> None:
        while self._waiting:
            some = [self._waiting[at] for at in range(min(len(self._waiting), _MAX_METRICS))]
            self._client.log_batch(self._run_id, metrics=some)
            for _ in some:
                self._waiting.popleft()


def _log_settings(client: MlflowClient, run_id: str, settings: dict[str, str]) -> None:
    from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

    params = [Param(key, value) for key, value in settings.items()]
    for start in range(0, len(params), _MAX_PARAMETERS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMETERS])


def _settings(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key with its value as a text that MLflow takes."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield _name(f"{prefix}{key}"), text[:_MAX_VALUE]


def _name(key: str) -> str:
    """`key` as MLflow allows it: letters, digits and a few marks, and no path that leads out."""
    name = re.sub(r"[^\w\-. :/]", "_", key)
    return posixpath.normpath(name).lstrip("./")[:_MAX_NAME] or "_"
