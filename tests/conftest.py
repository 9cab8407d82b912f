"""What every test shares: the demo data, built once, the repository's folders, measured errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

pytest_plugins = ["helpers.data_fixtures", "helpers.model_fixtures"]


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards as `nvlm data build-demo` writes them.

    Shared by xdist workers of one session, and by sessions that name one folder (`scripts/test`).
    """
    base = tmp_path_factory.getbasetemp()
    if folder := os.environ.get("NVLM_TEST_DATA"):
        root = Path(folder) / "demo-data"
    else:
        root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "demo-data"
    lock = root.with_suffix(".lock")
    with lock.open("w") as handle:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
        if not (root / "train").is_dir():
            subprocess.run(
                [sys.executable, "-m", "nvlm", "data", "build-demo", str(root)],
                check=True,
                cwd=REPOSITORY,
                timeout=300,
            )
    return root


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`measure(what, against, error, bound)`: assert error <= bound, note it for docs/parity.md.

    what: the quantity compared, such as `logits, largest difference`.
    against: the truth, such as `transformers Qwen2ForCausalLM` or `one process`.
    error: the measured error; 0 says that the two are bit-equal.
    bound: what the test accepts.

    With NVLM_MEASURED_DIR set, each measurement is written there; `scripts/parity_table` collects
    them into docs/parity.md.
    """

    def record(what: str, against: str, error: float, bound: float) -> None:
        folder = os.environ.get("NVLM_MEASURED_DIR")
        if folder:
            path = Path(str(request.node.path)).relative_to(REPOSITORY)
            row = {
                "test": f"{path}::{request.node.name}",
                "what": what,
                "against": against,
                "error": error,
                "bound": bound,
            }
            name = re.sub(r"\W+", "-", f"{row['test']} {what}")
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, f"{name}.json").write_text(json.dumps(row))
        assert error <= bound, f"{what} against {against}: {error:.3g}, at most {bound:.3g}"

    return record


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that measure carry the mark `parity`."""
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)
