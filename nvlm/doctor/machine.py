"""This machine: versions, packages that can be imported, device, limits."""

from __future__ import annotations

import importlib
import resource
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nvlm import platform
from nvlm.doctor.finding import Finding
from nvlm.launch import num_local_processes
from nvlm.versions import versions

# Package to import -> its distribution, and what misses it.
OPTIONAL = {
    "transformer_engine.pytorch": ("transformer-engine", "fused layers on a GPU"),
    "apex": ("apex", "gradients of weights fused with their sums, on a GPU"),
    "flash_attn": ("flash-attn", "its attention, where Transformer Engine chooses it"),
    "tensorboard": ("tensorboard", "log.tensorboard"),
    "wandb": ("wandb", "log.wandb_project"),
    "mlflow": ("mlflow", "log.mlflow"),
    "av": ("av", "samples with videos"),
    "pyarrow": ("pyarrow", "imports of parquet files"),
}
_GIB = 2**30
# Python's and torch's own; what tiles take comes on top.
_LEAST_SHARED_BYTES = _GIB


def look_at_versions() -> list[Finding]:
    """What decides what a run computes."""
    pairs = (line.split(" ", 1) for line in versions().splitlines())
    return [Finding(name, found.strip("()")) for name, found in pairs]


def look_at_packages() -> list[Finding]:
    """Optional packages: imported, not only found, as some are built for another torch."""
    findings = []
    for module, (distribution, needed_for) in OPTIONAL.items():
        try:
            installed = version(distribution)
        except PackageNotFoundError:
            findings.append(Finding(distribution, f"not installed ({needed_for})"))
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken installation raises
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            wrong = f"cannot be imported: {reason}: install it anew, or remove it"
            findings.append(Finding(distribution, installed, wrong=wrong))
        else:
            findings.append(Finding(distribution, f"{installed}, imported"))
    return findings


def look_at_device() -> list[Finding]:
    """The GPUs, or the CPU that stands for them."""
    machine = platform.current().machine()
    findings = [Finding(what, found) for what, found in platform.current().facts().items()]
    broken = [
        Finding(name, "installed", wrong=f"cannot be imported: {why}")
        for name, why in machine.broken.items()
    ]
    return findings + broken


def look_at_limits(num_workers: int = 0, bytes_per_batch: int = 0) -> list[Finding]:
    """What the system allows: open files, shared memory, locked memory.

    Args:
        num_workers: processes that read for each that trains.
        bytes_per_batch: of what a worker hands over at a time, through shared memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    few = (
        ""
        if hard == resource.RLIM_INFINITY or hard >= 4096
        else (
            "processes that exchange tensors use up 4,096: raise the hard limit (`ulimit -Hn`, or "
            "`--ulimit nofile` of the container)"
        )
    )
    findings = [Finding("open files", f"{soft:,} (of {allowed})", worth_knowing=few)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        num_processes = num_local_processes()
        # Two batches ahead for each worker, and the one in use.
        wanted = _LEAST_SHARED_BYTES * bool(num_workers)
        wanted += num_processes * (2 * num_workers + 1) * bytes_per_batch * bool(num_workers)
        wrong = ""
        if usage.free < wanted:
            wrong = (
                f"{size_in_words(wanted)} are wanted for what {num_workers} workers of each of "
                f"{num_processes} processes hand over: give the container more (`--ipc host` or "
                "`--shm-size`), or use data.num_workers=0"
            )
        found = f"{size_in_words(usage.free)} free of {size_in_words(usage.total)}"
        findings.append(Finding("shared memory (/dev/shm)", found, wrong=wrong))
    if platform.current().machine().has_gpu:
        locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        little = locked not in (resource.RLIM_INFINITY, -1) and locked < _GIB
        found = "no limit" if not little else f"{locked // 1024:,} KiB"
        why = "InfiniBand registers memory: `ulimit -l unlimited`, `--ulimit memlock=-1`"
        findings.append(Finding("locked memory", found, worth_knowing=why if little else ""))
    return findings


def size_in_words(num_bytes: float) -> str:
    if num_bytes < _GIB:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / _GIB:,.1f} GiB"
