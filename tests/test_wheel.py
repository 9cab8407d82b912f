"""The wheel, built and installed alone, works outside a clone and without the demo's packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.shipped import run_names
from nvlm.views.config import render_config

NOT_IN_THE_WHEEL = (
    "error: the demo is part of the repository, not of the wheel: clone the repository and run "
    "scripts/install demo there\n"
)
# Runs nvlm as a machine has it that never saw the repository or the demo's packages.
PROGRAM = """
import sys
installed, repository, *arguments = sys.argv[1:]
sys.path = [installed, *(path for path in sys.path if path != repository)]
editable = [f for f in sys.meta_path if "__editable__" in str(getattr(f, "__module__", ""))]
sys.meta_path = [finder for finder in sys.meta_path if finder not in editable]
for name in ("matplotlib", "skimage", "sklearn"):
    sys.modules[name] = None
import nvlm.cli
assert nvlm.cli.__file__.startswith(installed), nvlm.cli.__file__
sys.argv = ["nvlm", *arguments]
nvlm.cli.main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy: nothing built earlier gets in, and nothing is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(REPOSITORY / name, source)
    for name in ("nvlm", "configs", "demo", "assets"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def pip(verb: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-index", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=300)


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    elsewhere = installed.parent / "empty"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(installed), str(REPOSITORY), *arguments],
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not list(elsewhere.iterdir())
    return done


def test_wheel_has_nvlm_and_its_configurations_alone(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"nvlm", f"{wheel.name[:10]}.dist-info"}
    shipped = {name.removeprefix("nvlm/configs/") for name in names if "nvlm/configs/" in name}
    configs = REPOSITORY / "configs"
    assert {str(path.relative_to(configs)) for path in configs.rglob("*.yaml")} <= shipped
    # Templates, styles, prompt pools, modelling files: all that the package's folders hold.
    files = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "nvlm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(names), files - set(names)
    metadata = zipfile.ZipFile(wheel).read(f"{wheel.name[:10]}.dist-info/METADATA").decode()
    asked = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    of_the_demo = [line for line in asked if "matplotlib" in line or "scikit-" in line]
    assert len(of_the_demo) == 3
    assert all("extra == " in line for line in of_the_demo)


def test_help(installed: Path):
    done = run(installed, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "config" in done.stdout


def test_list_and_show_by_name(installed: Path):
    listed = run(installed, "config", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == run_names()
    shown = run(installed, "config", "show", "nvlm_d_72b/sft")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == render_config(load_config("nvlm_d_72b/sft"))


def test_a_name_that_is_none(installed: Path):
    done = run(installed, "train", "nvlm_d_72b/stf")
    assert done.returncode == 2
    assert "nvlm_d_72b/stf: no such configuration file; did you mean nvlm_d_72b/sft" in done.stderr


def test_model_is_built_without_the_packages_of_the_demo(installed: Path):
    done = run(installed, "model", "summary", "tiny/sft", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["total"]["parameters"] == 4033568


@pytest.mark.parametrize("arguments", [["demo"], ["data", "build-demo", "data"]], ids=" ".join)
def test_the_demo_says_where_it_is(arguments: list[str], installed: Path):
    done = run(installed, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", NOT_IN_THE_WHEEL)
