"""The report as one HTML file that needs nothing else: what it says.

How it looks is the matter of templates/report.html and report.css.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from nvlm.train.events import Event
from nvlm.views.pages import write_page
from nvlm.views.report.answers import asked_questions
from nvlm.views.report.curves import main_charts, source_charts
from nvlm.views.report.run_record import ReportError, RunRecord, read_run
from nvlm.views.report.samples import Example, repaired_examples, skipped_examples
from nvlm.views.report.settings import changes_of_run, differences
from nvlm.views.report.times import Part, spoken_seconds, time_parts

# Colours that templates/report.css has.
NUM_COLOURS = 8
_MAX_EVENTS = 100
# Events that say only that all is well.
_EXPECTED = ("save",)
_ENDS = {
    "end": "done",
    "stop": "stopped",
    "failure": "failed",
    "not_finite": "failed",
    "hang": "hung",
}


@dataclass(frozen=True)
class Section:
    """A run, as the page shows it."""

    label: str
    colour: int
    run: RunRecord
    facts: list[tuple[str, str]]  # (value, what it is)
    time: list[Part]
    skipped: list[Example]
    repaired: list[Example]
    picture_notes: list[str]
    events: list[Event]
    event_counts: dict[str, int]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs in `folders`.

    Raises:
        ReportError: one of the folders is no run's, or is given twice.
    """
    for folder, number in Counter(folder.resolve() for folder in folders).items():
        if number > 1:
            raise ReportError(f"{folder}: is given {number} times")
    return [read_run(folder) for folder in folders]


def write_report(runs: Sequence[RunRecord], path: Path) -> Path:
    """Write the report on `runs` to `path`, beside and renamed."""
    labels = _labels(runs)
    labelled = list(zip(labels, runs, strict=True))
    sources, num_more_sources = source_charts(labelled)
    return write_page(
        path,
        "nvlm.views",
        "report.html",
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        written=_when(datetime.now(UTC).timestamp()),
        sections=[_section(label, at, run) for at, (label, run) in enumerate(labelled)],
        num_colours=NUM_COLOURS,
        charts=main_charts(labelled),
        source_charts=sources,
        num_more_sources=num_more_sources,
        labels=labels,
        differences=differences([run.config for run in runs]),
        changes=[
            (label, [*(name for name, _ in run.earlier_settings), "now"], rows)
            for label, run in labelled
            if (rows := changes_of_run(run))
        ],
        questions=[(label, *asked_questions(run)) for label, run in labelled if run.generations],
        spoken_seconds=spoken_seconds,
        when=_when,
    )


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """The runs' names, with their folders where two have one name."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.name} ({run.folder})" for run in runs]


def _section(label: str, colour: int, run: RunRecord) -> Section:
    skipped, notes = skipped_examples(run)
    shown = [event for event in run.events if event.kind not in _EXPECTED]
    return Section(
        label=label,
        colour=colour % NUM_COLOURS,
        run=run,
        facts=_facts(run),
        time=time_parts(run),
        skipped=skipped,
        repaired=repaired_examples(run),
        picture_notes=notes,
        events=shown[-_MAX_EVENTS:],
        event_counts=dict(Counter(event.kind for event in run.events)),
    )


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    steps = run.series("loss").steps
    last = int(steps[-1]) if len(steps) else 0
    planned = run.setting("train.steps")
    state = _state(run)
    facts = [
        (f"{last:,}{f' of {int(planned):,}' if planned and planned.isdecimal() else ''}", state)
    ]
    loss = run.series("loss").finite.values
    if len(loss):
        recent = loss[-max(1, len(loss) // 20) :]
        of = (
            f"loss, mean of the last {len(recent):,} steps"
            if len(recent) > 1
            else "loss, last step"
        )
        facts.append((f"{recent.mean():.4f}", of))
    held_out = run.series("validation/loss").finite
    if len(held_out):
        best = int(held_out.values.argmin())
        facts.append(
            (
                f"{held_out.values[-1]:.4f}",
                f"held-out loss; lowest {held_out.values[best]:.4f} at step "
                f"{held_out.steps[best]:,}",
            )
        )
    exact = run.series("validation/exact_match").finite.values
    if len(exact):
        facts.append((f"{exact[-1]:.0%}", "of the held-out questions right"))
    speed = run.series("tokens_per_second").finite.values
    if len(speed):
        facts.append((f"{np.median(speed):,.0f}", "tokens/s, half of the steps are faster"))
    mfu = run.series("mfu").finite.values
    if len(mfu):
        facts.append((f"{np.median(mfu):.1%}", "MFU, half of the steps are higher"))
    trained, seen = run.series("tokens").sum(), run.series("samples").sum()
    if trained:
        facts.append((_many(trained), f"tokens trained, of {_many(seen)} samples"))
    passes = {key: run.series(key).values[-1] for key in run.keys("epochs/")}
    if passes:
        most, least = max(passes, key=passes.__getitem__), min(passes, key=passes.__getitem__)
        facts.append(
            (
                f"{passes[least]:.2f} to {passes[most]:.2f}",
                f"passes over the sources: {least.removeprefix('epochs/')} fewest, "
                f"{most.removeprefix('epochs/')} most",
            )
        )
    if run.skipped:
        facts.append((f"{sum(group.count for group in run.skipped):,}", "samples left out"))
    return facts


def _many(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= 10 * size:
            return f"{number / size:,.1f} {name}"
    return f"{number:,.0f}"


def _state(run: RunRecord) -> str:
    """What is known of whether the run goes on."""
    ends = [
        event for event in run.events if event.kind in _ENDS or event.kind in ("start", "resume")
    ]
    written = run.series("time").values
    when = f"; last step at {_when(written[-1])}" if len(written) else ""
    word = _ENDS.get(ends[-1].kind) if ends else None
    return f"steps, {word}{when}" if word else f"steps{when}"


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "?"
