"""Runs of one layer each over some of the demo's data: seconds on a CPU."""

from __future__ import annotations

from pathlib import Path

from helpers.paths import REPOSITORY
from nvlm.config import RunConfig, load_config, load_runs

STEPS = 2
# A row costs half of what one of the tiny model's own costs, and holds any sample of the demo.
SHORT_ROWS = ("stage.sequence_length=256", "stage.max_tiles_per_sequence=12")


def stage_config(stage: str, demo_data: Path, folder: Path, load: str, *more: str) -> RunConfig:
    own = [f"run.dir={folder / stage}", f"checkpoint.load={load}"]
    return load_config(
        REPOSITORY / f"configs/run/tiny/{stage}.yaml",
        [*settings_of(demo_data, folder), *own, *more],
    )


def small_stages(demo_data: Path, folder: Path, *more: str) -> dict[str, RunConfig]:
    """Both stages of the tiny model, in `folder`."""
    path = REPOSITORY / "configs/run/tiny/stages.yaml"
    runs = load_runs(path, [*settings_of(demo_data, folder), f"run.dir={folder}", *more])
    return {str(name): config for name, config in runs.items()}


def over(demo_data: Path) -> list[str]:
    """The demo's data, with one index for all runs that read all of it."""
    return [f"data.root={demo_data}", f"data.index_dir={demo_data.parent / 'demo-index'}"]


def settings_of(demo_data: Path, folder: Path) -> list[str]:
    return [
        f"data.root={demo_data}",
        "data.blend={digits: 1, text: 1}",
        f"data.index_dir={folder.parent / 'index'}",
        "data.num_workers=0",
        f"train.steps={STEPS}",
        "train.global_batch_size=2",
        *SHORT_ROWS,
        "train.precision=fp32",
        "model.vision.num_layers=1",
        "model.language.num_layers=1",
        "log.tensorboard=false",
    ]
