"""What every test shares: the demo data, built once, measured errors, faults and their outcomes."""

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

from nvlm import ending

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


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that calls the command line makes its process the program's, which a failure ends
    within ten seconds: not that of the tests that come after it."""
    monkeypatch.setattr(ending, "_is_program", False)
    monkeypatch.setattr(ending, "_has_begun", False)


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
        row = {"what": what, "against": against, "error": error, "bound": bound}
        _note("NVLM_MEASURED_DIR", request, what, row)
        assert error <= bound, f"{what} against {against}: {error:.3g}, at most {bound:.3g}"

    return record


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`fault(what=, layout=, outcome=)`: note for docs/reliability.md what a passed test has shown.

    To be called at the end, behind the assertions; once for each layout that the test went through.

    what: what went wrong, such as `a rank is killed (SIGKILL)`; the same words for the same fault.
    layout: of the run, such as `one process`, `TP2`, `TP2 x DP2`, or `any` where it has none.
    outcome: what the test found, such as `ends within 20 s, resumes bit-equal`.

    With NVLM_FAULTS_DIR set, each is written there; `scripts/fault_table` collects them into
    docs/reliability.md.
    """

    def record(*, what: str, layout: str, outcome: str) -> None:
        row = {"what": what, "layout": layout, "outcome": outcome}
        _note("NVLM_FAULTS_DIR", request, f"{what} {layout}", row)

    return record


def _note(variable: str, request: pytest.FixtureRequest, name: str, row: dict) -> None:
    """Write `row`, with its test, into the folder that the environment names, if it names one."""
    folder = os.environ.get(variable)
    if folder:
        path = Path(str(request.node.path)).relative_to(REPOSITORY)
        row = {"test": f"{path}::{request.node.name}", **row}
        Path(folder).mkdir(parents=True, exist_ok=True)
        file_name = re.sub(r"\W+", "-", f"{row['test']} {name}")
        Path(folder, f"{file_name[:200]}.json").write_text(json.dumps(row))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that measure carry the mark `parity`, those of a fault's outcome `fault`."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "measure" in names:
            item.add_marker(pytest.mark.parity)
        if "fault" in names:
            item.add_marker(pytest.mark.fault)
