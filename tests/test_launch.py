"""What torchrun says about a process: read in one place, and named where it makes no sense."""

from __future__ import annotations

import re

import pytest
from helpers.paths import REPOSITORY

from nvlm.errors import ConfigError
from nvlm.launch import Launch, launched, rank_to_speak

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_all(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, Launch(0, 1, 0)),
        ({"WORLD_SIZE": "1"}, Launch(0, 1, 0)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Launch(0, 1, 0)),
        ({"RANK": "0"}, Launch(0, 1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", **MEETING}, Launch(3, 4, 1)),
        ({"WORLD_SIZE": " 4 ", "RANK": "03", **MEETING}, Launch(3, 4, 0)),
    ],
)
def test_places(values: dict[str, str], expected: Launch, set_variables):
    set_variables(values)
    assert launched() == expected


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        ({"WORLD_SIZE": "auto"}, "WORLD_SIZE is 'auto'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"RANK": ""}, "RANK is empty"),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MEETING}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is 1, but WORLD_SIZE is 1"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "5", **MEETING}, "LOCAL_RANK is 5"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "", **MEETING}, "LOCAL_RANK is empty"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_ADDR": " "}, "MASTER_ADDR is empty"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_PORT": ""}, "MASTER_PORT is empty"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MEETING, "MASTER_PORT": "65536"}, "MASTER_PORT"),
    ],
)
def test_mistakes(values: dict[str, str], expected: str, set_variables):
    set_variables(values)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        launched()
    assert rank_to_speak() >= 0  # errors are printed all the same


def test_nobody_else_reads_the_variables():
    reading = re.compile(r"environ[^\n]*(WORLD_SIZE|RANK)")
    allowed = {"nvlm/launch.py", "nvlm/failures.py"}
    found = [
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "nvlm").rglob("*.py")
        if reading.search(path.read_text())
    ]
    assert set(found) <= allowed, found
