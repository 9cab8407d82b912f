"""The tiny SFT run whose losses tests/golden keeps.

As a script it rewrites them from one process, after an intended change:
`PYTHONPATH=tests python -m helpers.golden_run`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers import small_runs
from helpers.paths import REPOSITORY
from helpers.spawn import metrics, run_or_fail

NUM_STEPS = 10
GOLDEN = REPOSITORY / "tests" / "golden" / "tiny_sft_fp32.txt"
_KEYS = ("step", "loss", "grad_norm", "tokens", "tiles", "samples")


def train_tiny(
    folder: Path,
    demo_data: Path,
    num_processes: int,
    overrides: list[str],
    num_steps: int = NUM_STEPS,
) -> list[dict]:
    """Run the first steps of the tiny SFT configuration; returns its metrics."""
    run_or_fail(
        num_processes,
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        f"run.dir={folder}",
        f"train.steps={num_steps}",
        "train.precision=fp32",
        "log.tensorboard=false",
        *overrides,
        log=folder.with_suffix(".log"),
    )
    return metrics(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build = [sys.executable, "-m", "nvlm", "data", "build-demo", str(data)]
        subprocess.run(build, check=True, cwd=REPOSITORY)
        records = train_tiny(Path(folder) / "run", data, 1, [])
    GOLDEN.write_text("".join(json.dumps({k: r[k] for k in _KEYS}) + "\n" for r in records))


if __name__ == "__main__":
    main()
