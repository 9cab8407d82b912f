"""Copies of a configuration are checked like files."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import changed, load_config
from nvlm.config.changed import changed_section
from nvlm.config.schema import ParallelConfig, SourceConfig
from nvlm.errors import ConfigError

TINY = REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml"


def test_is_what_overrides_would_have_made():
    config = load_config(TINY)
    blend = {"a": 2.0, "b": SourceConfig(weight=3, blend={"c": SourceConfig(path="/x")})}
    changes = {"data.root": "/there", "data.blend": blend, "train.seed": 5}
    written = ["data.root=/there", "train.seed=5"]
    written.append("data.blend={a: 2, b: {weight: 3, blend: {c: {path: /x}}}}")
    assert changed(config, changes) == load_config(TINY, written)
    assert config == load_config(TINY)


def test_a_section_is_a_value_and_later_keys_change_it():
    layout = ParallelConfig(tensor=2, sequence=True)
    changes = {"parallel": layout, "parallel.sequence": False}
    assert changed(load_config(TINY), changes).parallel == ParallelConfig(tensor=2)


@pytest.mark.parametrize(
    "key, value, complaint",
    [
        ("data.rot", "x", "here: unknown key 'data.rot'; did you mean 'data.root'?"),
        ("dta.root", "x", "here: unknown key 'dta'; did you mean 'data'?"),
        ("train.steps", 0, "here: train.steps: must be a whole number of at least 1, found 0"),
        ("train.steps.of", 3, "here: train.steps: must be a whole number"),
        ("parallel.tensor", 3, "here: parallel.tensor 3 does not divide"),
    ],
)
def test_wrong_changes_are_refused(key: str, value: object, complaint: str):
    with pytest.raises(ConfigError) as caught:
        changed(load_config(TINY), {key: value}, where="here")
    assert str(caught.value).startswith(complaint)


def test_a_section_alone_is_checked_without_the_rules_between_sections():
    config = load_config(TINY)
    assert changed_section(config, {"parallel.tensor": 3}).parallel.tensor == 3
    assert changed_section(config.parallel, {"tensor": 3}).tensor == 3
    with pytest.raises(ConfigError, match="unknown key 'tensr'; did you mean 'tensor'"):
        changed_section(config.parallel, {"tensr": 3})
