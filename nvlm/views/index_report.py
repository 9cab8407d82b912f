"""`nvlm data index`: build what is missing, with progress bars, and say what there is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nvlm.config import RunConfig, changed
from nvlm.config.schema import SourceConfig
from nvlm.data.index.build import BuildProgress
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.shards.sources import unread_files
from nvlm.errors import DataError
from nvlm.importers.source_files import count_kinds
from nvlm.printing import new_console, printable
from nvlm.tables import print_table

# Rejected samples that are named; all are in the index's folder.
_NUM_REJECTED_SHOWN = 20


def build_indexes_with_progress(
    config: RunConfig, folders: list[Path] | None = None
) -> list[SourceIndex]:
    """Build what is missing and print a summary.

    Args:
        folders: of shards, in place of the run's sources. None: those.
    """
    for folder in folders or []:
        if not folder.exists():
            raise DataError(f"{folder}: no such folder of shards")
        if folder.is_file() and folder.suffix != ".tar":
            raise DataError(f"{folder}: is a file and no .tar: give folders of shards, or shards")
    if folders:
        blend = {_name(folder): SourceConfig(path=str(folder.resolve())) for folder in folders}
        if len(blend) < len(folders):
            raise DataError("two of the folders have one name; index them one by one")
        config = changed(config, {"data.blend": blend})
    console = new_console()
    with Progress(
        TextColumn("indexing {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[shards]} shards"),
        TextColumn("{task.fields[samples]:,} samples"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, int] = {}

        def show(done: BuildProgress) -> None:
            if done.source not in tasks:
                tasks[done.source] = bars.add_task(
                    done.source, total=done.num_bytes, shards="", samples=0, rate=0.0
                )
            bars.update(
                tasks[done.source],  # type: ignore[arg-type]
                completed=done.num_bytes_done,
                shards=f"{done.num_shards_done}/{done.num_shards}",
                samples=done.num_samples,
                rate=done.num_samples / max(done.seconds, 1e-9),
            )

        indexes = open_indexes(config, show=show)
    _print_summary(console, indexes)
    _name_rejected(console, indexes)
    _name_unread_files(console, indexes)
    return indexes


def _name(folder: Path) -> str:
    return folder.resolve().name.removesuffix(".tar")


def _print_summary(console: Console, indexes: list[SourceIndex]) -> None:
    rows = []
    for index in indexes:
        num_tokens = int(index.turn_tokens.sum()) + int(index.lead_single.sum())
        numbers = [
            len(index.shards), len(index), index.num_images, num_tokens,
            sum(index.num_rejected.values()),
        ]  # fmt: skip
        rows.append([index.source, *(f"{number:,}" for number in numbers)])
    headings = ["source", "shards", "samples", "images", "text tokens", "rejected"]
    print_table(console, "", headings, rows)
    for index in indexes:
        for reason, count in index.num_rejected.items():
            console.print(
                f"rejected {count:,} of {index.source}: {reason}", markup=False, highlight=False
            )


def _name_rejected(console: Console, indexes: list[SourceIndex]) -> None:
    for index in indexes:
        for number, rejected in enumerate(index.iterate_rejected()):
            if number == _NUM_REJECTED_SHOWN:
                console.print(f"... all of them: {index.rejected_file}", highlight=False)
                break
            console.print(
                printable(
                    f"rejected {rejected.source} {rejected.shard} {rejected.key or '(shard)'}: "
                    f"{rejected.reason}: {rejected.detail}"
                ),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _name_unread_files(console: Console, indexes: list[SourceIndex]) -> None:
    for index in indexes:
        folder = index.shards[0].parent
        if files := unread_files(folder, index.shards):
            console.print(
                f"files beside the shards of {index.source} that are not read: "
                f"{count_kinds(files, folder)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
