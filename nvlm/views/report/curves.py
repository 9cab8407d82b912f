"""The charts of a report, whichever numbers its runs have."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm.views.report.chart import Chart, Line, make_chart, span_of, with_mean
from nvlm.views.report.run_record import RunRecord

_MAX_MARKS = 100
_MARKED = ("resume", "spike", "skip", "not_finite", "hang")
_MAX_SOURCES = 48


def main_charts(runs: Sequence[tuple[str, RunRecord]]) -> list[Chart]:
    """Loss, learning rate, gradient norm, held-out answers, speed; `runs` have their labels."""
    several = len(runs) > 1
    marks = [] if several else _marks(runs[0][1])
    loss: list[Line] = []
    for colour, (label, run) in enumerate(runs):
        name = f"{label}: " if several else ""
        loss += with_mean(f"{name}training", run.series("loss"), colour)
        held_out = run.series("validation/loss")
        # Of one run, the held-out loss has a colour of its own.
        loss.append(Line(f"{name}held-out", held_out, colour if several else 1, "dots"))
    charts = [
        make_chart("Loss", loss, note="per trained token", marks=marks, span=_span(runs)),
        _one_of_each(runs, "Learning rate", "lr", from_zero=True, may_be_log=False),
        _one_of_each(runs, "Gradient norm", "grad_norm", note="before clipping", marks=marks),
        _exact_matches(runs),
        *_benchmarks(runs),
        _one_of_each(runs, "Speed", "tokens_per_second", note="tokens/s", from_zero=True),
        _one_of_each(runs, "Computing", "tflops_per_second", note="TFLOP/s of a process"),
        _one_of_each(runs, "MFU", "mfu", from_zero=True, may_be_log=False),
        _one_of_each(runs, "Step", "seconds", note="seconds, waiting for data included"),
        _one_of_each(runs, "Padding", "padding", note="share of positions", may_be_log=False),
        _one_of_each(
            runs, "Memory", "peak_memory_bytes", note="bytes at most so far, main process"
        ),
    ]
    return [chart for chart in charts if chart]


def source_charts(runs: Sequence[tuple[str, RunRecord]]) -> tuple[list[Chart], int]:
    """Training and held-out loss of each source; and how many sources are not shown."""
    sources = sorted(
        {
            key.removeprefix(prefix)
            for _, run in runs
            for prefix in ("loss/", "validation/loss/")
            for key in run.keys(prefix)
        }
    )
    charts = []
    for source in sources[:_MAX_SOURCES]:
        lines: list[Line] = []
        for colour, (label, run) in enumerate(runs):
            name, held_out = (f"{label}: ", colour) if len(runs) > 1 else ("", 1)
            lines += with_mean(f"{name}training", run.series(f"loss/{source}"), colour)
            series = run.series(f"validation/loss/{source}")
            lines.append(Line(f"{name}held-out", series, held_out, "dots"))
        charts.append(make_chart(source, lines, is_small=True, span=_span(runs)))
    return [chart for chart in charts if chart], max(0, len(sources) - _MAX_SOURCES)


def _one_of_each(
    runs: Sequence[tuple[str, RunRecord]],
    title: str,
    key: str,
    *,
    note: str = "",
    from_zero: bool = False,
    may_be_log: bool = True,
    marks: Sequence[tuple[int, str]] = (),
) -> Chart | None:
    lines: list[Line] = []
    for colour, (label, run) in enumerate(runs):
        name = label if len(runs) > 1 else title.lower()
        series = run.series(key)
        if key in ("lr", "peak_memory_bytes"):  # smooth by themselves
            lines.append(Line(name, series, colour))
        else:
            lines += with_mean(name, series, colour)
        if key == "lr" and len(runs) == 1:
            lines += [
                Line(pattern.removeprefix("lr/"), run.series(pattern), 1 + number)
                for number, pattern in enumerate(run.keys("lr/"))
            ]
    return make_chart(
        title,
        lines,
        note=note,
        from_zero=from_zero,
        may_be_log=may_be_log,
        marks=marks,
        span=_span(runs),
    )


def _exact_matches(runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """Of one run by task, of several all tasks together."""
    prefix = "validation/exact_match"
    lines: list[Line] = []
    for colour, (label, run) in enumerate(runs):
        if len(runs) > 1:
            lines.append(Line(label, run.series(prefix), colour))
        else:
            keys = run.keys(f"{prefix}/") or run.keys(prefix)
            lines += [
                Line(key.removeprefix(prefix).lstrip("/") or "all", run.series(key), number)
                for number, key in enumerate(keys)
            ]
    return make_chart(
        "Exact answers",
        lines,
        note="share of held-out questions",
        from_zero=True,
        may_be_log=False,
        span=_span(runs),
    )


def _benchmarks(runs: Sequence[tuple[str, RunRecord]]) -> list[Chart | None]:
    """One of each benchmark: their scales differ."""
    prefix = "benchmark/"
    keys = sorted({key for _, run in runs for key in run.keys(prefix) if key.count("/") == 1})
    charts = []
    for key in keys:
        name = key.removeprefix(prefix)
        lines = [
            Line(label if len(runs) > 1 else name, run.series(key), colour, "dots")
            for colour, (label, run) in enumerate(runs)
        ]
        charts.append(
            make_chart(
                f"Benchmark {name}",
                lines,
                note="score, as papers print it",
                from_zero=True,
                may_be_log=False,
                span=_span(runs),
            )
        )
    return charts


def _span(runs: Sequence[tuple[str, RunRecord]]) -> tuple[int, int]:
    """Of all plots, so that they can be compared."""
    return span_of(
        [series for _, run in runs for series in (*run.steps.values(), *run.between.values())]
    )


def _marks(run: RunRecord) -> list[tuple[int, str]]:
    found = [event for event in run.events if event.kind in _MARKED]
    return [(event.step, f"{event.kind}: {event.text}") for event in found[-_MAX_MARKS:]]
