"""Prompt pools: those of nvlm are whole, and a user's are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm.data.samples.prompts import fields_of, fill, fingerprint, load_prompt_pools
from nvlm.data.samples.variants import POOL_FIELDS
from nvlm.errors import DataError


def test_every_kind_has_its_own_pool():
    pools = load_prompt_pools(None)
    for name, fields in POOL_FIELDS.items():
        assert {fields_of(prompt) for prompt in pools[name]} == {fields}
    for name, prompts in pools.items():
        assert fields_of(prompts[0]) in POOL_FIELDS.values(), f"{name} serves no kind"
        assert len(set(prompts)) == len(prompts)


def test_fields_are_filled_in_once():
    values = {"question": "What is {choices}?", "choices": "A. {question}"}
    assert fill("{question}\n{choices} {other}", values) == (
        "What is {choices}?\nA. {question} {other}"
    )


def test_a_users_pools_stand_over_ours(tmp_path: Path):
    file = tmp_path / "pools.yaml"
    file.write_text("caption: [Look!]\nmine: ['{question} Why?']\n")
    pools = load_prompt_pools(str(file))
    assert (pools["caption"], pools["mine"]) == (["Look!"], ["{question} Why?"])
    assert pools["vqa"] == load_prompt_pools(None)["vqa"]
    assert fingerprint(pools) != fingerprint(load_prompt_pools(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a mapping of names to lists of texts"),
        ("a: b", "a: must be a list of at least one text"),
        ("a: []", "a: must be a list"),
        ("a: [[x]]", "['x'] is not a text"),
        ("a: [null]", "None is not a text"),
        ("a: [x]\na: [y]", "line 2: the key 'a' is given twice"),
        ("", "must be a mapping of names to lists of texts"),
        ("a: ['  ']", "is not a text"),
        ("a: ['<image> What?']", "images come first by themselves"),
        ("a: ['{qestion}']", "has the field {qestion}; known: {question}, {choices}"),
        ("a: ['{question}', 'What?']", "its texts have different fields"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_unusable_pools(tmp_path: Path, text: str, message: str):
    file = tmp_path / "pools.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=r"pools\.yaml") as caught:
        load_prompt_pools(str(file))
    assert message in str(caught.value)


def test_texts_are_what_was_written(tmp_path: Path):
    file = tmp_path / "pools.yaml"
    file.write_text("yesno: [yes, 'no', 010, 2026-11-25]\n")
    assert load_prompt_pools(str(file))["yesno"] == ["yes", "no", "010", "2026-11-25"]


def test_no_such_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.yaml: no such file of prompt pools"):
        load_prompt_pools(str(tmp_path / "gone.yaml"))
