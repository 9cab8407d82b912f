"""What a run needs besides its data and its model, looked at before anything is loaded.

This file imports no torch.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from nvlm.config import RunConfig
from nvlm.errors import ConfigError
from nvlm.failures import missing_package
from nvlm.places import check_folder


def check_before_start(config: RunConfig) -> None:
    """Raise `NvlmError` where the run could not write its folder or its logs."""
    check_folder(Path(config.run.dir), "run.dir")
    if config.log.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            f"log.tensorboard is true, but {missing_package('tensorboard')}, or set it to false"
        )
    if config.log.wandb_project:
        _check_wandb(f"log.wandb_project {config.log.wandb_project}")


def _check_wandb(setting: str) -> None:
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
