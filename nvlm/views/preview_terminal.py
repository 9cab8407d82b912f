"""The preview in a terminal: a block per sample, then a bar per sequence."""

from __future__ import annotations

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from nvlm.printing import new_console
from nvlm.views.preview import (
    PlannedSequence,
    Preview,
    ShownSample,
    describe,
    describe_cuts,
    describe_image,
)
from nvlm.views.preview_spans import Span
from nvlm.views.visible import visible

_LEAST_BAR_WIDTH, _MOST_BAR_WIDTH = 8, 40
_COLOURS = ("blue", "magenta", "green", "yellow", "cyan", "red", "bright_blue", "bright_magenta")
# Around what is trained, so that it can be told where colours are not shown, as in a file.
_TRAINED_START, _TRAINED_END = "⟦", "⟧"


def print_preview(preview: Preview, console: Console | None = None) -> None:
    """Print it; `visible` keeps texts from acting on the terminal."""
    console = console or new_console()
    colours = {
        name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(preview.stats.sources)
    }
    for sample in preview.samples:
        _print_sample(console, sample, colours[sample.source])
    console.print(Rule("sequences", align="left"))
    for sequence in preview.sequences:
        console.print(_sequence(preview, sequence, colours, console.width), soft_wrap=True)
    legend = Text()
    for name, colour in colours.items():
        legend.append("██ ", colour).append(f"{visible(name)}  ")
    console.print(legend)
    _print_losses(console, preview)


def _print_sample(console: Console, sample: ShownSample, colour: str) -> None:
    name = visible(f"{sample.number}  {sample.source}/{sample.key}")
    title = Text(name, f"bold {colour}")
    if title.cell_len + 4 > console.width:  # the rule would cut it
        console.print(Rule())
        console.print(title, overflow="fold")
    else:
        console.print(Rule(title, align="left"))
    place = f"step {sample.step}, sequence {sample.sequence}"
    console.print(Text(visible("  ".join([place, *describe(sample)])), "dim"), soft_wrap=True)
    for cut in describe_cuts(sample):
        console.print(Text(cut, "yellow"))
    for image in sample.images:
        console.print(Text(describe_image(image), "dim"))
    if sample.problem is not None:
        problem = f"left out when it is read: {sample.problem.reason}: {sample.problem.detail}"
        console.print(Text(visible(problem), "yellow"), soft_wrap=True)
    else:
        console.print(_tokens(sample.spans))
        for line in sample.beside:
            console.print(Text(visible(line), "dim"), soft_wrap=True)


def _tokens(spans: list[Span]) -> Text:
    text = Text()
    was_trained = False
    for span in spans:
        if span.trained != was_trained:
            _mark(text, starts=span.trained)
            was_trained = span.trained
        if span.kind == "image":
            text.append(f"[{len(span.ids)} x {span.text}]", "dim")
        else:
            style = "bold green" if span.trained else ("dim" if span.kind == "control" else "")
            text.append(visible(span.text).replace("\n", "↵\n"), style)
    if was_trained:
        _mark(text, starts=False)
    return text


def _mark(text: Text, starts: bool) -> None:
    """Where the trained part starts or ends; an end stands before the end of its line."""
    if starts:
        text.append(_TRAINED_START, "green")
        return
    ends_line = text.plain.endswith("\n")
    if ends_line:
        text.right_crop(1)
    text.append(_TRAINED_END, "green")
    if ends_line:
        text.append("\n")


def _sequence(
    preview: Preview, sequence: PlannedSequence, colours: dict[str, str], width: int
) -> Text:
    max_tokens = preview.config.stage.sequence_length
    before = f"step {sequence.step:>2} sequence {sequence.number:>2} "
    after = (
        f" {sequence.num_tokens:,}/{max_tokens:,} tokens, "
        f"{sequence.num_tiles:,}/{preview.max_tiles:,} tiles, samples: {len(sequence.documents)}"
    )
    left = width - len(before) - len(after)
    bar_width = max(_LEAST_BAR_WIDTH, min(_MOST_BAR_WIDTH, left))
    bar, done = Text(), 0
    for number, document in enumerate(sequence.documents):
        start = round(bar_width * done / max_tokens)
        done += document.length
        # Every other one is lighter, to be told from its neighbours.
        cell = "▓" if number % 2 else "█"
        width = round(bar_width * done / max_tokens) - start
        bar.append(cell * width, colours[document.source])
    bar.append("░" * (bar_width - len(bar)), "dim")
    return Text(before).append(bar).append(after)


def _print_losses(console: Console, preview: Preview) -> None:
    """What of each source is shortened or left out in the whole run."""
    rejected: dict[str, int] = {}
    for entry in preview.rejected:
        rejected[entry.source] = rejected.get(entry.source, 0) + entry.count
    for name, source in preview.stats.sources.items():
        draws = source.samples + source.dropped
        counts = {
            "fewer tiles": source.shortened_tiles,
            "cut turns": source.cut_turns,
            "dropped": source.dropped,
        }
        parts = [f"{count / draws:.1%} {what}" for what, count in counts.items() if count]
        if source.lost_tokens:
            parts.append(f"{source.lost_share:.1%} of its tokens lost")
        if name in rejected:
            parts.append(f"{rejected[name]:,} rejected by indexing")
        if parts:
            console.print(Text(visible(f"{name}: {', '.join(parts)}"), "yellow"), soft_wrap=True)
    for entry in preview.rejected:
        line = f"rejected {entry.count:,} of {entry.source}: {entry.reason}"
        if entry.example is not None:
            line += f", such as {entry.example.shard} {entry.example.key or '(shard)'}: "
            line += entry.example.detail
        console.print(Text(visible(line), "dim"), soft_wrap=True)
