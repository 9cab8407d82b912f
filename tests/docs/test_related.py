"""docs/related.md: the files that it names are there, and it names every grid."""

from __future__ import annotations

import re

from helpers.paths import REPOSITORY

from nvlm.ablate.grid_file import grid_names

PAGE = (REPOSITORY / "docs" / "related.md").read_text()
NAMED = re.findall(r"`([^`]+)`", PAGE)
FOLDERS = ("nvlm", "configs", "docs", "tests", "scripts", "benchmarks", "demo")


def test_every_file_that_is_named_is_there():
    paths = [name for name in NAMED if name.startswith(tuple(f"{top}/" for top in FOLDERS))]
    assert len(paths) > 20
    assert not [path for path in paths if not (REPOSITORY / path).exists()]


def test_every_grid_is_named():
    assert not set(grid_names()) - set(NAMED)
