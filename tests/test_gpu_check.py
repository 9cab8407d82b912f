"""The command for the day there is a GPU, tried with tiny sizes on whatever is here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import pytest
import torch
from helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gpu_check"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    spec = spec_from_loader("gpu_check", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_tiny_model_goes_all_the_way(script: ModuleType):
    case = script.run_case(script._TINY, script.time.monotonic() + 240)
    assert "failed" not in case, case["failed"]
    for part in ("step", "decoder", "encoder"):
        assert case[part]["seconds"] > 0 and case[part]["tflops_per_second"] > 0
    assert case["step"]["peak_bytes"] > 0 and case["save_result"]["peak_bytes"] > 0
    assert case["plan"]["step_bytes"] > 0 and case["plan"]["step_seconds"] > 0
    assert case["features_result"]
    for row in case["features_result"].values():
        assert row.get("off") or row["ratio"] == row["with"] / row["without"]
    device = {"has_gpu": False, "device": "a CPU", "python": "3", "torch": "2", "packages": {}}
    tests = {"command": "pytest", "summary": "1 failed", "failed": ["FAILED one"]}
    other = {**script._TINY, "failed": "out of memory"}
    page = script.page(
        {"device": device, "date": "today", "commit": "abc", "tests": tests, "cases": [case, other]}
    )
    assert "| encoder, forward |" in page and "out of memory" in page and "- FAILED one" in page
    assert f"`nvlm plan` reckons {case['plan']['step_bytes'] / 1e9:.2f} GB" in page
    json.dumps(case)


@pytest.mark.parametrize("case", ["_DECODER_WIDTH", "_WHOLE_SMALL"])
def test_cases_of_a_gpu_are_runs_that_one_gpu_holds(script: ModuleType, case: str):
    plan = script.planned(getattr(script, case))
    assert "failed" not in plan, plan["failed"]
    assert plan["fits"]


def test_what_fails_or_hangs_is_named(script: ModuleType):
    case = {**script._TINY, "run": "configs/run/none.yaml"}
    found = script.run_case(case, script.time.monotonic() + 60)
    assert "none.yaml" in found["failed"]
    code, printed, seconds = script.run(["-c", "import time; time.sleep(60)"], 1.0)
    assert code == 124 and "ended after 1 s" in printed and seconds < 30


def test_wheels_are_all_that_is_imported_but_torch(script: ModuleType):
    names = {line.split("==")[0] for line in script.wheels()}
    assert {"megatron-core", "transformers", "pyarrow", "pydantic-core", "pytest"} <= names
    assert not {"torch", "nvlm", "mkdocs-material", "matplotlib"} & names


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", "nowhere"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout.startswith("gpu_check: no GPU here (CPU")
