"""What every test shares: the demo data, built once, measured errors, faults and their outcomes.

And the order of files: the longest begin; those whose tests start several processes, which wait for
each other, come between those that compute.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm import ending
from nvlm.megatron.known_warnings import KNOWN_WARNINGS

# Of half a minute and more: what begins last decides when the others' cores fall idle. A name that
# is not there any more costs nothing.
LONGEST = (
    "model/test_model_layouts.py",
    "parallel/test_layouts.py",
    "parallel/test_resume.py",
    "data/loading/test_loader.py",
    "parallel/test_kills.py",
    "docs/test_convert_walkthrough.py",
    "model/test_adapter_layouts.py",
    "model/test_tile_parallel.py",
    "parallel/test_bad_samples.py",
    "convert/test_fused_exports.py",
    "model/test_transformer_engine.py",
    "parallel/test_stops.py",
    "train/test_stages.py",
    "train/test_overlap.py",
    "cli/test_bad_input.py",
    "convert/test_vllm_prompts.py",
)

pytest_plugins = ["helpers.data_fixtures", "helpers.model_fixtures"]
gc.disable()  # until all is imported: see `pytest_collection`


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
        if not root.is_dir():
            begun = root.with_suffix(".begun")
            subprocess.run(
                [sys.executable, "-m", "nvlm", "data", "build-demo", str(begun)],
                check=True,
                cwd=REPOSITORY,
                timeout=500,
            )
            begun.rename(root)
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


# Python shows a program none of these: about functions that other packages call by old names.
_SHOWN_TO_TESTS_ONLY = (
    r"Warning. tp_group is None, using default tp group",  # at each of Megatron-core's layers
    r"`gradient_checkpointing_(en|dis)able` is deprecated",
)


def pytest_configure(config: pytest.Config) -> None:
    """What a run ignores is not listed: 40,000 lines of others' would hide one of ours."""
    for message in (*KNOWN_WARNINGS, *_SHOWN_TO_TESTS_ONLY):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What was imported is not searched for garbage, as `nvlm.loading` has it for programs."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """Nor after tests whose loaders have undone that, as they do when they are closed."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that measure carry the mark `parity`, those of a fault's outcome `fault`."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "measure" in names:
            item.add_marker(pytest.mark.parity)
        if "fault" in names:
            item.add_marker(pytest.mark.fault)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        _order_files(items)


def _order_files(items: list[pytest.Item]) -> None:
    """The longest first, then those that start processes evenly among the others."""
    files = {item.path: False for item in items}
    for item in items:
        files[item.path] |= item.get_closest_marker("parallel") is not None
    places = {}
    for starts_processes in (True, False):
        same = [path for path, has in files.items() if has == starts_processes]
        places |= {path: (number + 0.5) / len(same) for number, path in enumerate(same)}
    tests = Path(__file__).parent
    places |= {tests / name: number - len(LONGEST) for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places[item.path])
