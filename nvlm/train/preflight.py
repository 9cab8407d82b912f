"""What a run needs besides its data and its model, looked at before anything is loaded.

This file imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from nvlm.config import RunConfig
from nvlm.places import check_folder
from nvlm.train.trackers import check_mlflow, check_tensorboard, check_wandb


def check_before_start(config: RunConfig) -> None:
    """Raise `NvlmError` where the run could not write its folder or its logs, or ask what its
    validation is to ask."""
    check_folder(Path(config.run.dir), "run.dir")
    check_tensorboard(config.log)
    check_wandb(config.log)
    check_mlflow(config.log)
    if config.validation.benchmarks:
        # Other runs need no readers of benchmarks.
        from nvlm.train.benchmark_files import check_benchmarks

        check_benchmarks(config)
