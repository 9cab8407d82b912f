"""The page of faults names tests that exist, and that note what it says."""

from __future__ import annotations

import ast
import re

from helpers.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "reliability.md"


def test_every_row_is_of_a_test_that_notes_faults():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 5
    named = [
        re.fullmatch(r"\| .+ \| .+ \| .+ \| `([\w/]+\.py)::(\w+)(\[.*\])?` \|", row) for row in rows
    ]
    assert all(named), [row for row, match in zip(rows, named, strict=True) if not match]
    missing = []
    for path, name in {(match[1], match[2]) for match in named if match}:
        file = REPOSITORY / path
        functions = ast.parse(file.read_text()).body if file.is_file() else []
        arguments = {
            argument.arg
            for function in functions
            if isinstance(function, ast.FunctionDef) and function.name == name
            for argument in function.args.args
        }
        if "fault" not in arguments:
            missing.append(f"{path}::{name}")
    assert not missing
