"""What is written about keys, for people and for editors, is what the schema says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import yaml
from helpers.paths import REPOSITORY
from jsonschema import Draft7Validator

from nvlm.config import load_runs
from nvlm.config.compose import to_yaml

CONFIGS = REPOSITORY / "configs"
# Grids are files of another kind: tests/ablate checks them.
FILES = sorted({*CONFIGS.rglob("*.yaml")} - {*CONFIGS.glob("ablation/*.yaml")})
WRITTEN = runpy.run_path(str(REPOSITORY / "scripts" / "config_docs"))
EDITORS = Draft7Validator(json.loads((CONFIGS / "schema.json").read_text()))


def test_tables_and_json_schema_are_as_the_schema_says():
    """After a change of a key, `scripts/config_docs` writes both anew."""
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert WRITTEN["render_page"](page) == page
    assert WRITTEN["render_json_schema"]() == (CONFIGS / "schema.json").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_editors_accept_what_is_shipped(path: Path):
    EDITORS.check_schema(EDITORS.schema)
    texts = [path.read_text()]
    if path.parent.parent.name == "run":
        first_key = "run" if path.stem == "stages" else "base"
        assert f"# yaml-language-server: $schema=../../schema.json\n{first_key}:" in texts[0]
        texts += [to_yaml(config) for config in load_runs(path).values()]
    for text in texts:
        assert not [*EDITORS.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize(
    "text, place",
    [
        ("train: {stesp: 3}", ["train"]),
        ("train: {steps: 0}", ["train", "steps"]),
        ("train: {precision: fp8}", ["train", "precision"]),
        ("stage: {packing: 1}", ["stage", "packing"]),
        ("stage: {freeze: vision_model.*}", ["stage", "freeze"]),
        ("train: {optimizer: {beta1: 1}}", ["train", "optimizer", "beta1"]),
        ("data: {blend: {a: {blend: {b: 0}}}}", ["data", "blend"]),
        ("base: {a: b}", ["base"]),
        ("stages: {}", ["stages"]),
        ("stages: {a b: null}", ["stages"]),
        ("stages: {a: {train: {steps: 0}}}", ["stages", "a", "train", "steps"]),
        ("stages: {a: {run: {dir: b}}}", ["stages", "a"]),
    ],
)
def test_editors_underline_what_is_wrong(text: str, place: list[str]):
    (error,) = EDITORS.iter_errors(yaml.safe_load(text))
    assert [*error.path] == place
