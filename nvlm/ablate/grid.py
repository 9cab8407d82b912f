"""`nvlm ablate`: from the file of a grid to its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvlm.ablate.cells import Cell, make_cells
from nvlm.ablate.existing import check_unchanged, own_grid_folder, unnamed_cells, write_cells
from nvlm.ablate.grid_file import Grid, find_grid, read_grid
from nvlm.ablate.grid_results import find_results, write_results
from nvlm.ablate.run_tasks import Failure, Start, run_tasks, start_process
from nvlm.ablate.show import print_cells, print_results
from nvlm.ablate.slurm import write_slurm
from nvlm.ablate.tasks import make_tasks
from nvlm.errors import ConfigError, TrainingError
from nvlm.printing import say


def open_grid(
    given: str, folder: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Grid, str, Path, list[Cell]]:
    """The grid, its name, its folder and its cells.

    Raises:
        ConfigError: see `read_grid` and `make_cells`, or a run has begun with other settings.
    """
    path = find_grid(given)
    grid = read_grid(path)
    place = folder or Path(str(grid.dir))
    cells = make_cells(grid, place, overrides)
    _check_metric(grid, cells[0])
    check_unchanged(cells)
    return grid, path.stem, place, cells


def dry_run(given: str, folder: Path | None, overrides: Sequence[str]) -> None:
    """Print what there is to do; nothing is written."""
    grid, _, place, cells = open_grid(given, folder, overrides)
    print_cells(grid, cells, unnamed_cells(place, cells))


def ablate(
    given: str,
    folder: Path | None,
    overrides: Sequence[str],
    num_jobs: int,
    start: Start = start_process,
) -> None:
    """Run what is not done, compare, print, and write results and page.

    Raises:
        NvlmError: something of the grid is wrong, and nothing was started; or tasks failed, and all
            others were done and compared.
        Stopped: this process was asked to stop; the same command goes on.
    """
    grid, name, place, cells = open_grid(given, folder, overrides)
    with own_grid_folder(place):
        write_cells(cells)
        tasks = make_tasks(cells, grid.evaluate)
        failures = run_tasks(tasks, num_jobs, grid.processes, start)
        finish(grid, name, place, cells, failures)
    if failures:
        raise TrainingError(*map(str, failures))


def prepare_slurm(given: str, folder: Path | None, overrides: Sequence[str]) -> None:
    """Write the scripts of what is not done.

    Raises:
        NvlmError: something of the grid is wrong, or it cannot run on Slurm.
    """
    grid, name, place, cells = open_grid(given, folder, overrides)
    with own_grid_folder(place):
        write_cells(cells)
        submit = write_slurm(grid, name, place, cells)
    if submit is None:
        say("all is done: the same command without --slurm prints the table")
        return
    say(
        f"written: {submit}: it submits what is not done; then the same command without --slurm "
        "prints the table"
    )


def finish(
    grid: Grid, name: str, place: Path, cells: Sequence[Cell], failures: Sequence[Failure] = ()
) -> None:
    """Compare what is done, print it, and write it."""
    # What draws pages loads torch, which a dry run does without.
    from nvlm.ablate.page import write_grid_page

    results = find_results(grid, name, cells, failures)
    print_results(results)
    say(f"results: {write_results(results, place)}\npage: {write_grid_page(results, place)}")


def _check_metric(grid: Grid, base: Cell) -> None:
    """Raise `ConfigError` where cells would be ranked by what nobody measures."""
    metric, asked = grid.ranked_by, grid.evaluate
    config = next(iter(base.runs.values())).config
    has_validation = config.validation.every is not None
    known = {
        "answers": asked.data_root is not None,
        "suite": bool(asked.suite),
        "mir": asked.mir is not None,
        "validation": has_validation,
        "benchmark": has_validation and bool(config.validation.benchmarks),
        "train": True,
    }
    for key in [metric, *([grid.scaling.metric] if grid.scaling else [])]:
        if not known.get(key.partition("/")[0]):
            raise ConfigError(
                f"rank_by {key}: nothing measures it: answers needs evaluate.data_root, suite/NAME "
                "evaluate.suite, mir evaluate.mir, validation/loss `validation.every` in `set`"
            )
