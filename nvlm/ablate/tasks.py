"""What a grid has to do: commands, what each waits for, and whether it is done already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvlm.ablate.cells import Cell, Initial, Run
from nvlm.ablate.existing import all_initial, all_runs, is_made, state_of
from nvlm.ablate.grid_file import Evaluation
from nvlm.evaluate.suite.folder import SCORES_FILE
from nvlm.hashes import hash_json


@dataclass(frozen=True)
class Task:
    """One `nvlm` command.

    folder: of the run that it is about.
    out: what is there once it is done, of a task that asks a finished run; None: a training.
    needs: tasks that have to be done before.
    is_done: whether what it makes is there.
    """

    name: str
    arguments: list[str]
    folder: Path
    log: Path
    is_done: Callable[[], bool]
    needs: list[Task] = field(default_factory=list)
    out: Path | None = None


def training_name(run: Run) -> str:
    return f"{run.folder.parent.name}/{run.folder.name}"


def make_tasks(cells: Sequence[Cell], asked: Evaluation) -> list[Task]:
    """Every run's training and what is asked of the finished ones, in the order to begin them."""
    trainings: dict[Path, Task] = {}
    conversions = {one.folder: _conversion(one, cells) for one in all_initial(cells)}
    tasks = [*conversions.values()]
    last = {run.folder for cell in cells for run in cell.runs.values()}
    for run in all_runs(cells):
        training = Task(
            name=training_name(run),
            arguments=["train", str(run.beside(".yaml"))],
            folder=run.folder,
            log=run.beside(".log"),
            is_done=lambda run=run: state_of(run).is_done,
            needs=[
                *([trainings[run.before.folder]] if run.before else []),
                *([conversions[run.initial.folder]] if run.initial else []),
            ],
        )
        trainings[run.folder] = training
        tasks.append(training)
        if run.folder in last:
            tasks += _questions(run, asked, training)
    return tasks


def conversion_arguments(initial: Initial) -> list[str]:
    """Of the `nvlm` command that makes these first weights."""
    vision, language = initial.sources.vision, initial.sources.language
    folders = [vision] if isinstance(vision, str) else vision
    encoders = [word for folder in folders for word in ("--vision", folder)]
    config = ["--config", str(initial.config_file)]
    return ["convert", "from-hf", *encoders, "--language", language, *config, str(initial.folder)]


def _conversion(initial: Initial, cells: Sequence[Cell]) -> Task:
    folder = initial.folder
    return Task(
        name=f"{folder.parent.name}/{folder.name}",
        arguments=conversion_arguments(initial),
        folder=folder,
        log=folder.with_name(f"{folder.name}.log"),
        is_done=lambda: is_made(initial, cells),
    )


def answers_file(run: Run, asked: Evaluation) -> Path:
    """Answers to the split; asked for otherwise, they are in another file."""
    what = {"root": asked.data_root, "split": asked.split, "limit": asked.limit_per_task}
    what["tokens"] = asked.max_new_tokens
    return run.beside(f".answers-{hash_json(what)[:8]}.jsonl")


def suite_folder(run: Run, asked: Evaluation) -> Path:
    what = {"data": asked.data, "limit": asked.limit, "tokens": asked.max_new_tokens}
    return run.beside(f".suite-{hash_json(what)[:8]}")


def mir_file(run: Run, asked: Evaluation) -> Path:
    what = {"root": asked.data_root, "split": asked.split, "samples": asked.mir}
    return run.beside(f".mir-{hash_json(what)[:8]}.json")


def _questions(run: Run, asked: Evaluation, training: Task) -> list[Task]:
    tasks = []
    name = training_name(run)
    tokens = ["--max-new-tokens", str(asked.max_new_tokens)] if asked.max_new_tokens else []
    if asked.data_root is not None:
        out = answers_file(run, asked)
        limit = ["--limit-per-task", str(asked.limit_per_task)] if asked.limit_per_task else []
        own = ["--data-root", asked.data_root, "--split", asked.split, "--out", str(out)]
        arguments = ["evaluate", str(run.folder), *own, *limit, *tokens]
        log = run.beside(".evaluate.log")
        tasks.append(
            Task(f"{name} questions", arguments, run.folder, log, out.is_file, [training], out)
        )
    if asked.suite:
        out = suite_folder(run, asked)
        limit = ["--limit", str(asked.limit)] if asked.limit else []
        own = ["--suite", ",".join(asked.suite), "--data", str(asked.data), "--out", str(out)]
        arguments = ["evaluate", str(run.folder), *own, *limit, *tokens]
        scores = [out / benchmark / SCORES_FILE for benchmark in asked.suite]
        tasks.append(
            Task(
                f"{name} benchmarks",
                arguments,
                run.folder,
                run.beside(".suite.log"),
                lambda: all(path.is_file() for path in scores),
                [training],
                out / SCORES_FILE,
            )
        )
    if asked.mir is not None:
        out = mir_file(run, asked)
        own = ["--data-root", str(asked.data_root), "--split", asked.split, "--out", str(out)]
        arguments = ["evaluate", "mir", str(run.folder), *own, "--samples", str(asked.mir)]
        log = run.beside(".mir.log")
        tasks.append(Task(f"{name} MIR", arguments, run.folder, log, out.is_file, [training], out))
    return tasks
