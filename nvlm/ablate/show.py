"""A grid on the terminal: what it would do, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from nvlm.ablate.cells import Cell, Run, difference_of
from nvlm.ablate.existing import all_initial, all_runs, is_made, state_of
from nvlm.ablate.grid_file import Grid
from nvlm.ablate.grid_results import CellResult, Compared, Results
from nvlm.ablate.significance import CONFIDENCE
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import make_plan
from nvlm.plan.hardware import Card, card_named
from nvlm.plan.kernels import kernels_on
from nvlm.printing import listed, new_console
from nvlm.tables import print_table
from nvlm.views.plan import work_of

_MOST_METRICS = 12


def title_of(cell: Cell, grid: Grid) -> str:
    return grid.base_name if cell.is_base else cell.name


def print_cells(grid: Grid, cells: Sequence[Cell], unnamed: Sequence[str]) -> None:
    """Cells, what they change, how far each is, and planned hours: nothing is started.

    Raises:
        ConfigError: `card` is none, or a run's layout cannot be planned.
    """
    console = new_console(highlight=False)
    card = card_named(grid.card) if grid.card else None
    hours = {run.folder: planned_hours(run, grid, card) for run in all_runs(cells)} if card else {}
    rows = []
    for cell in cells:
        states = [state_of(run) for run in cell.runs.values()]
        row = [title_of(cell, grid), f"{sum(s.is_done for s in states)} of {len(states)}"]
        if card:
            row.append(f"{sum(hours[run.folder] for run in cell.runs.values()):,.1f}")
        rows.append(row)
    earlier = [run for run in all_runs(cells) if run not in _last_runs(cells)]
    for run in earlier:
        done = state_of(run).is_done
        rows.append([f"stage {run.folder.name}", f"{int(done)} of 1"])
        if card:
            rows[-1].append(f"{hours[run.folder]:,.1f}")
    made = all_initial(cells)
    for initial in made:
        rows.append([f"weights {initial.folder.name}", f"{int(is_made(initial, cells))} of 1"])
        if card:
            rows[-1].append("")
    headings = ["cell", "seeds\ndone"] + ([f"GPU hours\non {card.name}"] if card else [])
    print_table(console, f"{len(cells)} cells x {len(grid.seeds)} seeds", headings, rows)
    for cell in cells:
        _print_difference(console, cell, cells[0], grid)
    if earlier:
        console.print(
            f"{len(earlier)} runs of earlier stages are trained once each, whoever begins from "
            "them: stage-HASH above, in the folder `stages`.",
            markup=False,
        )
    if made:
        console.print(
            f"{len(made)} first weights are converted, one for each model and seed: weights HASH "
            "above, in the folder `initial`.",
            markup=False,
        )
    if card:
        total = sum(hours.values())
        console.print(
            f"planned: {total:,.0f} GPU hours in all, {grid.processes:,} GPUs a run (`nvlm plan`)",
            markup=False,
        )
    if unnamed:
        console.print(f"not in the grid, and left alone: {listed(unnamed, 6)}", markup=False)


def _last_runs(cells: Sequence[Cell]) -> list[Run]:
    return [run for cell in cells for run in cell.runs.values()]


def _print_difference(console: Console, cell: Cell, base: Cell, grid: Grid) -> None:
    changes = [
        f"{key} {short(old)} -> {short(new)}"
        for key, (old, new) in difference_of(cell, base).items()
    ]
    text = f"{title_of(cell, grid)}: {'; '.join(changes) or grid.base}"
    console.print(text, markup=False, soft_wrap=True)


def short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(_plain(value))
    return text if len(text) <= 160 else f"{text[:159]}…"


def _plain(value: Any) -> Any:
    """A blend as one would write it: without what it does not say, and weights alone."""
    if not isinstance(value, dict):
        return value
    said = {key: _plain(some) for key, some in value.items() if some is not None}
    if said.get("loss_weight") == 1:
        del said["loss_weight"]
    return said["weight"] if set(said) == {"weight"} else said


def planned_hours(run: Run, grid: Grid, card: Card) -> float:
    """GPU hours of all its steps, as `nvlm plan` reckons them."""
    assumptions = assumptions_for(card, {}, kernels_on(run.config, card))
    work = work_of(run.config, None, None)
    return make_plan(run.config, grid.processes, assumptions, work).hours * grid.processes


def print_results(results: Results) -> None:
    """The ranking, its other numbers, and how to read them."""
    console = new_console(highlight=False)
    metric = results.metric
    rows = [_row(result, results) for result in results.cells]
    headings = ["cell", "rank", "seeds", "mean", f"{CONFIDENCE:.0%}\ninterval", "to base"]
    headings += [
        "interval",
        "p, over\nseeds",
        "p, over\nquestions",
        "not told\napart from",
        "hours",
    ]
    styles = ["bold" if result.rank == 1 else None for result in results.cells]
    print_table(console, f"{results.name}: {metric}", headings, rows, styles=styles)
    others = [name for name in results.metrics if name != metric]
    if others:
        _print_others(console, results, others)
    for line in notes_of(results):
        console.print(line, markup=False, style="dim")


def _row(result: CellResult, results: Results) -> list[str]:
    metric = results.metric
    mean = result.means.get(metric)
    compared = result.compared.get(metric)
    cells = [
        title_of(result.cell, results.grid),
        str(result.rank or "-"),
        f"{len(result.measured)}/{len(result.cell.runs)}",
        number(mean.value) if mean else "-",
        interval(mean.interval) if mean else "-",
    ]
    if compared is None:
        cells += ["-", "-", "-", "-"]
    else:
        cells += [
            f"{compared.difference.mean.value:+.4g}",
            interval(compared.difference.mean.interval, sign="+"),
            p_value(compared.p_seeds_holm),
            p_value(compared.p_questions_holm),
        ]
    return [*cells, not_told_apart(result, results), f"{result.hours:.2g}"]


def not_told_apart(result: CellResult, results: Results) -> str:
    """From which of the base and the first cell the ranking's number does not tell this one."""
    to_base: Compared | None = result.compared.get(results.metric)
    alike = []
    if to_base is not None and not to_base.is_told_apart:
        alike.append("base")
    if result.to_first is not None and not result.to_first.is_told_apart:
        if results.cells[0].cell.is_base:
            return "base" if alike else ""
        alike.append("first")
    return ", ".join(alike)


def _print_others(console: Console, results: Results, others: Sequence[str]) -> None:
    shown = others[:_MOST_METRICS]
    rows = [
        [title_of(result.cell, results.grid)]
        + [number(result.means[name].value) if name in result.means else "-" for name in shown]
        for result in results.cells
    ]
    headings = [name.replace("/", "/\n") for name in shown]
    print_table(console, "means of other numbers", ["cell", *headings], rows)
    if len(others) > len(shown):
        console.print(f"{len(others) - len(shown)} more are in results.json", style="dim")


def notes_of(results: Results) -> list[str]:
    """How the numbers were found, and what they cannot say."""
    notes = [
        "Differences are paired: same seeds, same questions. p values are two-sided and corrected "
        "for all cells together (Holm). Not told apart: a test that can be made has p of 0.05 or "
        "more. Intervals are not corrected."
    ]
    if len(results.grid.seeds) == 1:
        notes.append("One seed: what another seed would change is not known.")
    if results.shared:
        hours = sum(results.shared.values())
        notes.append(
            f"Earlier stages, trained once each and not in the cells' hours: "
            f"{listed(results.shared, 4)}: {hours:.2g} hours."
        )
    if results.scaling is not None:
        notes.append(scaling_line(results))
    return notes


def scaling_line(results: Results) -> str:
    scaled = results.scaling
    assert scaled is not None
    if scaled.law is None or scaled.next is None:
        return f"No power law: {scaled.problem}."
    law, there = scaled.law, scaled.next
    return (
        f"Power law of {scaled.about.metric} through {law.num_points} runs: {law.a:.4g} x "
        f"{scaled.about.size}^-{law.b:.4g} + {law.c:.4g} (exponent {ends(law.b_interval)}); at "
        f"{there.size:,.0f} {scaled.about.size.replace('_', ' ')} {there.value:.4g} "
        f"({ends(there.interval)}; of a run {ends(there.with_noise)})."
    )


def ends(interval_: tuple[float | None, float | None]) -> str:
    low, high = ("open" if end is None else f"{end:.4g}" for end in interval_)
    return f"{CONFIDENCE:.0%}: {low} to {high}"


def number(value: float) -> str:
    return f"{value:.4g}"


def interval(ends_: tuple[float, float] | None, sign: str = "") -> str:
    return "-" if ends_ is None else " .. ".join(f"{end:{sign}.4g}" for end in ends_)


def p_value(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
