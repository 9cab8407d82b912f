"""Grids of tiny runs, and starting their commands from a server that has everything imported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from helpers import warm
from helpers.paths import REPOSITORY
from helpers.small_runs import settings_of
from helpers.spawn import start_warm


def write_grid(path: Path, demo_data: Path, **changes: Any) -> Path:
    """A grid over tile tags in `path`, its cells beside it in `cells_of_NAME`."""
    folder = path.parent / f"cells_of_{path.stem}"
    settings = [*settings_of(demo_data, folder), "validation.every=1", "validation.samples=2"]
    settings += ["checkpoint.every=1", "data.blend={digits: 1}"]
    # First weights are of whole models.
    without = ("data.index_dir", *(("model.",) if "first_weights" in changes else ()))
    values = {
        "base": str(REPOSITORY / "configs/run/tiny/sft.yaml"),
        "dir": str(folder),
        "set": dict(
            setting.split("=", 1) for setting in settings if not setting.startswith(without)
        ),
        "axes": {"tags": {"none": {"stage.tile_tags": "none"}}},
        "seeds": [1],
    } | changes
    values["set"]["data.blend"] = yaml.safe_load(values["set"]["data.blend"])
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def start_soon(command: Sequence[str], environment: Mapping[str, str], log: Path) -> warm.Job:
    """A task's command as `run_tasks` starts it: with everything imported."""
    return start_warm(1, *command[1:], log=log)


def table(folder: Path) -> dict[str, Any]:
    """`results.json` without the hours that it took."""
    found = json.loads((folder / "results.json").read_text())
    for cell in found["cells"]:
        del cell["cost"]["hours"], cell["runs"]
    found["earlier_stages"] = sorted(found["earlier_stages"])
    del found["grid"]
    return found
