"""The commands of docs/convert.md, run as they stand, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run_block
from PIL import Image

PAGE = REPOSITORY / "docs" / "convert.md"


def blocks() -> list[tuple[str, str]]:
    return blocks_of(PAGE)


@pytest.mark.parallel
def test_every_command_runs(demo_data: Path, tmp_path: Path):
    # The page writes below runs/; here that is a folder of the test's, with the demo's data in it.
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "data").symlink_to(demo_data)
    environment = {
        **prepare(tmp_path),
        "PYTHONWARNINGS": "ignore",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    outputs = []
    for language, text in blocks():
        if language == "bash":
            # Building the data is the demo's test; it exists already.
            text = "".join(
                line for line in text.splitlines(keepends=True) if "build-demo" not in line
            )
            outputs.append(run_block(language, text, tmp_path, environment))
        elif language == "python":
            pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "runs" / "walkthrough" / "picture.png")
            outputs.append(run_block(language, text, tmp_path, environment))
    folder = tmp_path / "runs" / "walkthrough"
    assert (folder / "export" / "model.safetensors.index.json").is_file()
    assert (folder / "sft" / "checkpoints" / "latest").is_symlink()
    assert len(outputs[-1].splitlines()) >= 2, outputs[-1]
    assert not list(folder.rglob("*.tmp"))


def test_blocks_are_all_of_a_known_kind():
    kinds = [language for language, _ in blocks()]
    assert set(kinds) == {"bash", "text", "python"}
    assert kinds.count("bash") >= 5
