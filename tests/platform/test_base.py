"""The platforms are what `Platform` says, no less and no more."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import nvlm
from nvlm.platform import cpu, cuda
from nvlm.platform.base import Platform

MEMBERS = {name for name in vars(Platform) if not name.startswith("_")}


@pytest.mark.parametrize("module", [cpu, cuda], ids=["cpu", "cuda"])
def test_platform_has_these_functions_and_no_others(module):
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    assert public == MEMBERS
    for name in MEMBERS:
        wanted = list(inspect.signature(getattr(Platform, name)).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == wanted


def test_every_member_is_asked_for():
    package = Path(nvlm.__file__).parent
    code = "\n".join(
        path.read_text() for path in package.rglob("*.py") if path.parent.name != "platform"
    )
    code += inspect.getsource(nvlm.platform)
    calls = re.findall(r"platform\w*(?:\.current\(\))?\.(\w+)\b", code)
    assert set(calls) >= MEMBERS
