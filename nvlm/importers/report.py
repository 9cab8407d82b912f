"""An import as a user sees it: a progress bar, then what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nvlm.data.samples.text_members import printable
from nvlm.importers.formats import ImportOptions
from nvlm.importers.run import (
    REJECTED_FILE,
    SUMMARY_FILE,
    ImportSummary,
    import_source,
)
from nvlm.printing import new_console

_MAX_UNUSED_SHOWN = 20


def import_with_progress(options: ImportOptions, out: Path) -> ImportSummary:
    """`nvlm data import`: as `run.import_source`, shown."""
    console = new_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        bar = bars.add_task("importing", total=None, rate="")
        # Samples of an earlier, interrupted run do not count for the rate.
        first: list[int] = []

        def show(units_done: int, num_units: int, num_read: int, num_samples: int | None) -> None:
            if not first:
                first.append(num_read)
            seconds = bars.tasks[0].elapsed or 0
            rate = f"{(num_read - first[0]) / seconds:,.0f} samples/s" if seconds else ""
            if num_samples is None:
                bars.update(bar, completed=units_done, total=num_units, rate=rate)
            else:
                bars.update(bar, completed=num_read, total=num_samples, rate=rate)

        summary = import_source(options, out, show)
    table = Table("shards", "samples", "images", "bytes", "rejected", box=None)
    numbers = [
        summary.num_shards,
        summary.num_samples,
        summary.num_images,
        summary.num_bytes,
        summary.num_rejected,
    ]
    table.add_row(*(f"{number:,}" for number in numbers))
    console.print(f"written to {summary.folder}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for reason, count in summary.reasons.items():
        console.print(
            f"rejected {count:,}: {reason}", markup=False, highlight=False, soft_wrap=True
        )
    if summary.num_rejected:
        rejected = Path(summary.folder) / REJECTED_FILE
        console.print(f"each is named in {rejected}", markup=False, highlight=False, soft_wrap=True)
    for line in [*summary.notes, *_weights(summary), *_unused_fields(summary)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return summary


def _weights(summary: ImportSummary) -> Iterator[str]:
    """A number called `weight` may be another's, such as that of goods."""
    for name, count in summary.weighted_by.items():
        samples = f"{count:,} sample{'s' * (count != 1)}"
        yield (
            f"loss: field `{name}` multiplies what {samples} count in the loss; remove it from the "
            "source if it means something else"
        )


def _unused_fields(summary: ImportSummary) -> Iterator[str]:
    unused = list(summary.unused_fields.items())
    if not unused:
        yield "not used: no field of any sample"
    for name, count in unused[:_MAX_UNUSED_SHOWN]:
        what = printable(name) if name.startswith("member .") else f"field `{printable(name)}`"
        yield f"not used: {what} in {count:,} sample{'s' * (count != 1)}"
    if len(unused) > _MAX_UNUSED_SHOWN:
        place = Path(summary.folder) / SUMMARY_FILE
        yield f"not used: {len(unused) - _MAX_UNUSED_SHOWN} more fields, all named in {place}"
