"""What every test shares: the demo data, built once, and the repository's folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "parallel"))


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards as `nvlm data build-demo` writes them (shared by xdist workers of one session)."""
    base = tmp_path_factory.getbasetemp()
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
