"""The data of the tiny grids: what is asked is what is shown, in the tiles that are meant."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from demo import tile_sheets
from nvlm.data.images.tiling import choose_grid


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    patch = pytest.MonkeyPatch()
    sizes = {
        task: (10, 5 if heldout else 0) for task, (_, heldout) in tile_sheets.NUM_SAMPLES.items()
    }
    patch.setattr(tile_sheets, "NUM_SAMPLES", sizes)
    folder = tmp_path_factory.mktemp("sheets")
    for name in ("one", "other"):
        tile_sheets.write_tile_sheets(folder / name)
    patch.undo()
    return folder


def samples_of(root: Path) -> list[tuple[str, str, dict, Image.Image]]:
    found = []
    for path in sorted(root.rglob("*.tar")):
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name in [name for name in files if name.endswith(".json")]:
            content = json.loads(files[name])
            image = Image.open(io.BytesIO(files[name.replace("json", "0.png")]))
            found.append((path.parts[-3], content["task"], content, image))
    return found


def test_the_same_seed_writes_the_same_bytes(root: Path):
    digests = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.tar")
        }
        for folder in (root / "one", root / "other")
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 9


def test_answers_are_what_the_sheet_shows(root: Path):
    for split, task, content, image in samples_of(root / "one"):
        shown = content["digits"]
        flat = [digit for row in shown for digit in row]
        columns, rows = len(shown[0]), len(shown)
        assert choose_grid(*image.size, 6, tile_sheets.scenes.TILE) == (columns, rows)
        turns = [message["content"] for message in content["messages"]]
        expected = tile_sheets.NUM_TRAINING_TURNS[task] if split == "train" else 1
        assert len(turns) == 2 * expected
        for question, answer in zip(turns[::2], turns[1::2]):
            if task in ("single", "reading"):
                assert answer == "".join(map(str, flat))
            elif task == "counting":
                assert int(answer) == flat.count(int(re.search(r"digit (\d)\?", question)[1]))
            elif task == "tile":
                tile = int(re.search(r"tile (\d)\?", question)[1])
                assert answer == f"tile {tile}:{flat[tile - 1]}"
            else:
                row, column = map(int, re.search(r"R(\d)C(\d)\?", question).groups())
                assert f"{rows} rows and {columns} columns" in question
                assert answer == f"R{row}C{column}:{shown[row - 1][column - 1]}"
