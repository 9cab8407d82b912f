"""Connections to trackers, and what is wrong with them before a run starts.

This file imports no torch, and a tracker's package only where a setting asks for it.
"""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nvlm.config.run_sections import LogConfig
from nvlm.errors import ConfigError
from nvlm.failures import missing_package

if TYPE_CHECKING:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - an optional extra

_SECONDS_TO_ANSWER = 10.0


def check_tensorboard(log: LogConfig) -> None:
    if log.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            f"log.tensorboard is true, but {missing_package('tensorboard')}, or set it to false"
        )


def check_wandb(log: LogConfig) -> None:
    """Raise `ConfigError` where Weights & Biases is not installed, logged in or reachable."""
    if not log.wandb_project:
        return
    setting = f"log.wandb_project {log.wandb_project}"
    if find_spec("wandb") is None:
        raise ConfigError(f"{setting}: {missing_package('wandb')}, or leave the setting out")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    import wandb  # pyright: ignore[reportMissingImports] - an optional extra

    # Whether there is a key, without a question and without a connection.
    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            f"{setting}: not logged in to Weights & Biases: run `wandb login`, set WANDB_API_KEY, "
            "or set WANDB_MODE=offline"
        )
    server = wandb.setup().settings.base_url
    if problem := _why_unreachable(server):
        raise ConfigError(
            f"{setting}: {server} does not answer: {problem}; set WANDB_MODE=offline to train "
            "without it and send the numbers later with `wandb sync`"
        )


def check_mlflow(log: LogConfig) -> None:
    """Raise `ConfigError` where MLflow is not installed, or its server or store refuses."""
    if not log.mlflow_experiment:
        return
    if find_spec("mlflow") is None:
        raise ConfigError(
            f"log.mlflow_experiment {log.mlflow_experiment}: {missing_package('mlflow')}, or leave "
            "the setting out"
        )
    connect_mlflow(log)


def connect_mlflow(log: LogConfig) -> tuple[MlflowClient, str | None]:
    """The client, and the id of the experiment, which is None where there is none of the name.

    Raises:
        ConfigError: there is no address, nobody answers there, or it refuses.
    """
    setting = f"log.mlflow_experiment {log.mlflow_experiment}"
    uri = log.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"{setting}: where to? Set log.mlflow_uri or MLFLOW_TRACKING_URI to a server's address "
            "or to a file such as sqlite:///mlflow.db"
        )
    problem = _why_unreachable(uri) if uri.startswith(("http://", "https://")) else None
    if problem is None:
        import mlflow  # pyright: ignore[reportMissingImports]

        # How it makes its tables is of no interest.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            client = mlflow.MlflowClient(uri)
            experiment = client.get_experiment_by_name(str(log.mlflow_experiment))
            if experiment is None or experiment.lifecycle_stage == "active":
                return client, experiment and experiment.experiment_id
            problem = "the experiment is deleted: restore it, or give another name"
        except Exception as error:  # MLflow's own, its database's, the system's
            problem = " ".join(str(error).split())[:300]
    raise ConfigError(f"{setting}: MLflow at {uri}: {problem}")


def _why_unreachable(address: str) -> str | None:
    """None where somebody answers at `address`, whatever they say."""
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS_TO_ANSWER):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # Certificates are the tracker's to judge: it may know others.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
