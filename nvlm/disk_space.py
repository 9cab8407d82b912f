"""Space that files will take, looked at before the first of them is written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from nvlm.errors import CheckpointError

# Headers, records of what lies where, the configuration.
_SHARE_FOR_SMALL_FILES = 0.02
_BYTES_FOR_SMALL_FILES = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_space(target: Path, num_bytes: int) -> None:
    """Refuse to begin a checkpoint `target` of `num_bytes` where the disk has less left.

    A quota does not show here: writing says so.

    Raises:
        CheckpointError: how much it takes, how much there is, and where.
    """
    folder = next((path for path in target.absolute().parents if path.is_dir()), Path("/"))
    needed = round(num_bytes * (1 + _SHARE_FOR_SMALL_FILES)) + _BYTES_FOR_SMALL_FILES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{target}: not written: it takes {size_text(needed)} and {folder} has "
            f"{size_text(free)} left: free some space, or keep fewer checkpoints (checkpoint.keep)"
        )


def with_need(error: CheckpointError, num_bytes: int) -> CheckpointError:
    """`error` with the space that the checkpoint takes, where it was that which was missing."""
    cause = error.__cause__
    # torch's has what each failing rank met.
    failures = getattr(cause, "failures", None)
    if failures:
        cause = failures[min(failures)][0]
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return CheckpointError(f"{error} (it takes {size_text(num_bytes)})")
    return error


def size_text(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"
