"""What pip is told on an image that brings its own torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "docker" / "image_requirements.py"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Installed packages of an image: its builds, one of them local, and one damaged folder."""
    for name, version in {
        "torch": "2.10.0a0+b4e4ee81d3",
        "Transformer_Engine": "2.10.0+769ed778",
        "Pillow": "1.0",
    }.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    (tmp_path / "flash_attn-2.7.4.dist-info").mkdir()  # what an interrupted installation leaves
    return tmp_path


def printed(image: Path, *arguments: str) -> list[str]:
    """With the image's packages alone: nothing but the standard library is imported."""
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(image)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_builds_of_the_image_are_pinned_as_they_are(image):
    lines = printed(image, "constraints")
    assert {"torch==2.10.0a0+b4e4ee81d3", "transformer-engine==2.10.0+769ed778"} <= set(lines)
    assert "pillow==13.0.0" in lines
    assert not [line for line in lines if line.startswith("flash-attn")]
    assert len([line for line in lines if line.startswith("torch==")]) == 1


def test_requirements_leave_the_builds_out(image):
    names = [line.split(">")[0].split("=")[0] for line in printed(image, "requirements")]
    assert "torch" not in names
    assert {"megatron-core", "transformers"} <= set(names) and "pytest" not in names


def test_requirements_of_an_extra_hold_those_that_it_names(image):
    lines = printed(image, "requirements", "dev")
    assert lines[: len(printed(image, "requirements"))] == printed(image, "requirements")
    names = [line.split(">")[0].split("=")[0] for line in lines]
    assert {"pytest", "matplotlib"} <= set(names)
    assert len(names) == len(set(names)) and not any(name.startswith("nvlm") for name in names)


def test_other_words_are_refused():
    for arguments in ([], ["requirement"], ["constraints", "dev"]):
        done = subprocess.run(
            [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and "image_requirements.py requirements dev" in done.stderr
