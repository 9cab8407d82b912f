"""Rules between what a run measures, what it asks, and what its best checkpoint is the best by."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import RunConfig


def validation_problems(config: RunConfig) -> Iterator[str]:
    wanted = config.validation
    if wanted.every is None and wanted.questions:
        yield f"validation.questions {wanted.questions}: nothing is asked: set validation.every"
    if not wanted.benchmarks:
        return
    names = ", ".join(wanted.benchmarks)
    if wanted.every is None:
        yield f"validation.benchmarks {names}: nothing is asked: set validation.every"
    if wanted.benchmarks_dir is None:
        yield f"validation.benchmarks {names}: say with validation.benchmarks_dir where they lie"


def checkpoint_problems(config: RunConfig) -> Iterator[str]:
    best, best_is = config.checkpoint.best, config.checkpoint.best_is
    if best is not None and best_is is None:
        yield f"checkpoint.best {best}: say with checkpoint.best_is if lower or higher is better"
    if best is not None and config.validation.every is None:
        yield f"checkpoint.best {best}: nothing is measured: set validation.every"
    if best is not None and best.startswith("benchmark/"):
        benchmarks = config.validation.benchmarks or []
        if best.split("/")[1] not in benchmarks:
            found = ", ".join(benchmarks) or "none"
            yield f"checkpoint.best {best}: is not among validation.benchmarks ({found})"
    if best is None and best_is is not None:
        yield f"checkpoint.best_is {best_is}: checkpoint.best does not say of which number"
