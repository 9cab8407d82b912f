"""What stands in a file of stages, and what follows from a stage's place in it.

Each stage is a run like any other, in a folder of its own: `run.dir/STAGE`. The first one starts
from `checkpoint.load`, every later one from the stage before it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nvlm.config.layers import Layer
from nvlm.config.schema import RunConfig
from nvlm.config.yaml_file import Values


def place_stage(
    values: Values, stage: str, layers: Sequence[Layer], before: str | None
) -> list[str]:
    """Put name, folder and first weights of a stage into its merged `values`.

    Args:
        layers: what was merged.
        before: the stage whose weights it starts from; None: it is the first.

    Returns:
        problems: what the file says of the stage and cannot mean.
    """
    problems = []
    own = [layer for layer in layers if layer.stage == stage and not layer.is_base]
    shared = [layer.values for layer in layers if layer.stage is None]
    if any("run" in layer.values for layer in own):
        problems.append(
            f"run: `run` is said once, above the stages: this one's folder is run.dir/{stage}"
        )
    run = _merged_sections(shared, "run")
    if run is not None:
        values["run"] = _run_of_stage(run, stage)
    else:
        values.pop("run", None)  # a base's, which is a run by itself
    section = values.setdefault("stage", {})
    if isinstance(section, dict):
        values["stage"] = {"name": stage, **section}
    if before is None:
        return problems
    if any(_section(layer.values, "checkpoint").get("load") for layer in own):
        problems.append(
            f"checkpoint.load: the stage starts from the one before it, {before}: leave it out"
        )
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        checkpoint = values.setdefault("checkpoint", {})
        if isinstance(checkpoint, dict):
            load = os.path.join(run["dir"], before)
            values["checkpoint"] = {**checkpoint, "load": load}
    return problems


def _run_of_stage(run: Any, stage: str) -> Any:
    if not isinstance(run, dict):
        return run
    placed = dict(run)
    if isinstance(run.get("dir"), str):
        placed["dir"] = os.path.join(run["dir"], stage)
    if isinstance(run.get("name"), str):
        placed["name"] = f"{run['name']}-{stage}"
    return placed


def _merged_sections(all_values: Sequence[Values], key: str) -> Any:
    """A section that has no sections in it; None: nobody says anything of it."""
    merged: Any = None
    for values in all_values:
        if key in values:
            given = values[key]
            is_both = isinstance(given, dict) and isinstance(merged, dict)
            merged = {**merged, **given} if is_both else given
    return merged


def _section(values: Values, key: str) -> Values:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def as_file(runs: dict[str, RunConfig]) -> Values:
    """A file of stages that says all that there is to say: `load_runs` gives `runs` again."""
    (first, config), *_ = runs.items()
    run = config.run.model_dump(mode="json") | {
        "name": config.run.name.removesuffix(f"-{first}"),
        "dir": os.path.dirname(config.run.dir),
    }
    stages: Values = {}
    for name, each in runs.items():
        values = each.model_dump(mode="json")
        del values["run"]
        if name != first:
            del values["checkpoint"]["load"]
        stages[name] = values
    return {"run": run, "stages": stages}
