"""The commands of docs/data.md, run as they stand, on the tiny model."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run_block

from nvlm.config.schema import DataConfig, SourceConfig, StageConfig, TrainConfig
from nvlm.data.samples.kinds import KINDS

PAGE = REPOSITORY / "docs" / "data.md"


def blocks() -> list[tuple[str, str]]:
    return blocks_of(PAGE)


class ImageCount(HTMLParser):
    num_images = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.num_images += tag == "img"


@pytest.mark.parallel
def test_every_command_runs(tmp_path: Path):
    # The page writes below runs/; here that is a folder of the test's.
    environment = prepare(tmp_path)
    outputs = {}
    for language, text in blocks():
        if language in ("bash", "python"):
            printed = run_block(language, text, tmp_path, environment)
            outputs.setdefault(text.split(" runs/")[0], printed)

    folder = tmp_path / "runs" / "my-data"
    imported = json.loads((folder / "shards/train/pictures/import.json").read_text())
    assert (imported["num_samples"], imported["reasons"]) == (11, {"missing_image": 1})
    # What the page says that the import prints.
    said = next(text for _, text in blocks() if text.startswith("written to"))
    printed = outputs["nvlm data import"].strip()
    assert [line.split()[:3] for line in printed.splitlines()] == [
        line.split()[:3] for line in said.splitlines()
    ]
    assert "pictures" in outputs["nvlm data stats"]
    page = ImageCount()
    page.feed((folder / "preview.html").read_text())
    assert page.num_images >= 6
    steps = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert (folder / "run/checkpoints/latest").is_symlink()
    assert (folder / "run/skipped.jsonl").is_file()
    (index,) = (folder / "run/index").glob("pictures-*")
    assert list(index.rglob("rejected.jsonl"))
    assert not list(folder.rglob("*.tmp"))
    asked = next(text for _, text in blocks() if text.startswith("asking questions"))
    printed = outputs["nvlm evaluate"]
    assert [line.split() for line in asked.splitlines()] == [
        line.split() for line in printed.splitlines()[: len(asked.splitlines())]
    ]
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 11


def test_blocks_are_all_of_a_known_kind():
    kinds = [language for language, _ in blocks()]
    assert set(kinds) == {"bash", "python", "text"}
    assert kinds.count("bash") >= 5


def test_the_reference_names_what_there_is():
    text = PAGE.read_text()
    named = re.findall(r"^\| `(\w+)` \| .*", text, flags=re.MULTILINE)
    assert set(KINDS) <= set(named)
    example = yaml.safe_load(next(block for _, block in blocks() if block.startswith("data:")))
    used = set()
    for entry in example["data"]["blend"].values():
        if isinstance(entry, dict):
            SourceConfig.model_validate(entry)
            used |= entry.keys()
    assert used == SourceConfig.model_fields.keys()
    sections = {"data": DataConfig, "stage": StageConfig, "train": TrainConfig}
    settings = re.findall(r"`(data|stage|train)\.(\w+)[`:]", text)
    assert len(settings) > 10
    for section, name in settings:
        assert name in sections[section].model_fields, f"{section}.{name}"
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (PAGE.parent / link).is_file(), link
