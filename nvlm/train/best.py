"""The best of a run's checkpoints by a number of its validation, and what counts as better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from nvlm.checkpoint_files import read_progress
from nvlm.config.run_sections import CheckpointConfig
from nvlm.errors import ConfigError, NvlmError
from nvlm.printing import listed
from nvlm.run_checkpoints import BEST_LINK


def measured_value(wanted: CheckpointConfig, record: Mapping[str, float]) -> float:
    """The number that `checkpoint.best` names.

    Raises:
        ConfigError: it is none of `record`'s.
    """
    assert wanted.best is not None
    if wanted.best not in record:
        raise ConfigError(
            f"checkpoint.best {wanted.best}: the validation has no such number; it has "
            f"{listed(sorted(record), 12) or 'none'}"
        )
    return float(record[wanted.best])


def best_so_far(folder: Path, wanted: CheckpointConfig) -> float | None:
    """That of the checkpoint which `best` points to in `folder`, a run's `checkpoints`.

    None: there is none, or it was the best by another number.
    """
    with suppress(OSError, NvlmError):
        progress = read_progress((folder / BEST_LINK).resolve()) or {}
        found = progress.get("measured", {}).get(wanted.best)
        if isinstance(found, int | float) and progress.get("best_is") == wanted.best_is:
            return float(found)
    return None


def is_better(value: float, before: float | None, wanted: CheckpointConfig) -> bool:
    """Whether `value` makes a new best one; what is not a number never does."""
    if not math.isfinite(value):
        return False
    if before is None:
        return True
    return value < before if wanted.best_is == "lower" else value > before
