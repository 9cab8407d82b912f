"""The demo's data: its layout, its answers, its splits and its reproducibility."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from demo import build_data, digits, photographs, questions, scenes
from nvlm.data.images.image import to_pixels
from nvlm.data.images.tiling import choose_grid, cut_tiles
from nvlm.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo-data")
    with pytest.MonkeyPatch.context() as patch:
        few = dict.fromkeys(build_data.SOURCES, (12, 8))
        patch.setattr(build_data, "NUM_SAMPLES", few)
        build_data.build_demo_data(folder, seed=3, progress=False)
    return folder


def _samples(root, split, source):
    (shard,) = (root / split / source).glob("*.tar")
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


@pytest.mark.parametrize("split", build_data.SPLITS)
@pytest.mark.parametrize("source", build_data.SOURCES)
def test_samples_are_conversations_with_their_images(root, split, source):
    samples = _samples(root, split, source)
    assert len(samples) == (12 if split == "train" else 8)
    for key, members in samples.items():
        content = json.loads(members.pop("json"))
        user, assistant = content["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert (content["task"], content["id"]) == (source, key)
        assert user["content"].count("<image>\n") == len(members)
        assert assistant["content"]
        assert [name.partition(".")[0] for name in members] == [str(n) for n in range(len(members))]
        for data in members.values():
            assert Image.open(io.BytesIO(data)).mode == "RGB"
        if source == "multi_image":
            assert len(members) in (2, 3)
        else:
            assert len(members) == (0 if source == "text" else 1)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(root, tmp_path, monkeypatch):
    monkeypatch.setattr(build_data, "NUM_SAMPLES", dict.fromkeys(build_data.SOURCES, (12, 8)))
    hashes = {}
    for name, seed in (("again", 3), ("other", 4)):
        build_data.build_demo_data(tmp_path / name, seed=seed, progress=False)
        hashes[name] = _hashes(tmp_path / name)
    assert hashes["again"] == _hashes(root)
    same = {name for name, value in hashes["other"].items() if value == hashes["again"][name]}
    # Held-out text is every sixth question, whatever the seed.
    assert same == {"heldout/text/text-000000.tar"}


def _hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.tar")
    }


def test_sheets_are_tiled_into_their_grid_and_the_answer_stands_in_the_named_tile(root):
    grids = set()
    for members in _samples(root, "train", "sheets").values():
        content = json.loads(members["json"])
        shown, row, column = content["digits"], content["row"], content["column"]
        grid = (len(shown[0]), len(shown))
        image = Image.open(io.BytesIO(members["0.png"]))
        assert choose_grid(*image.size, 6, scenes.TILE) == grid
        assert len(cut_tiles(to_pixels(image), 6, True, scenes.TILE)) == grid[0] * grid[1] + 1
        assert content["messages"][1]["content"] == str(shown[row - 1][column - 1])
        assert f"row {row}, column {column}" in content["messages"][0]["content"]
        grids.add(grid)
    assert grids == set(scenes.SHEET_GRIDS)


def test_search_has_its_digit_on_one_tile_and_blocks_on_the_others():
    rng = np.random.default_rng(0)
    for columns, rows in scenes.SHEET_GRIDS:
        scene, digit, target = scenes.search_scene(rng, "train", (columns, rows))
        assert scene.grid == (columns, rows)
        tiles = cut_tiles(to_pixels(scene.draw()), 6, True, scenes.TILE)
        assert len(tiles) == columns * rows + 1
        digit_words = set(questions.DIGIT_NAMES)
        for number, words in enumerate(scene.words_of_tiles()[:-1]):
            shown = set(words) - {scenes.BLANK}
            expected = {questions.DIGIT_NAMES[digit]} if number == target else shown - digit_words
            assert shown == expected and len(shown) == 1


def test_single_tile_sources_become_one_tile(root):
    for source in ("digits", "ocr", "charts", "multi_image"):
        for members in _samples(root, "train", source).values():
            for name, data in members.items():
                if name != "json":
                    image = Image.open(io.BytesIO(data))
                    assert choose_grid(*image.size, 6, scenes.TILE) == (1, 1)


def test_no_scan_photograph_region_or_text_question_is_in_both_splits():
    for digit in range(10):
        train, heldout = (digits.scan_numbers(split, digit) for split in build_data.SPLITS)
        assert not set(train) & set(heldout)
        assert len(heldout) >= 20 and len(train) >= 130  # measured: 22 to 40 and 135 to 157
        assert all(digits.digit_of(scan) == digit for scan in [*train, *heldout])
    for photograph in photographs.PHOTOGRAPHS:
        a, b = photograph.train, photograph.heldout
        assert a[2] <= b[0] or a[3] <= b[1], f"regions of {photograph.file} overlap"
    train, heldout = (dict(questions.text_questions(split)) for split in build_data.SPLITS)
    assert len(train) > 400 and len(heldout) > 80 and not set(train) & set(heldout)


def test_cells_name_what_is_drawn_in_them():
    rng = np.random.default_rng(0)
    scene, shown = scenes.sheet_scene(rng, "train", (3, 2))
    tiles = scene.words_of_tiles()
    assert len(tiles) == 7
    for number, words in enumerate(tiles[:6]):
        row, column = divmod(number, 3)
        assert set(words) == {scenes.BLANK, questions.DIGIT_NAMES[shown[row][column]]}
    assert tiles[6] == [scenes.SHEET] * 16
    # Where a cell says blank, the pixels differ less than where it says there is a digit.
    tile = cut_tiles(to_pixels(scene.draw()), 6, True, scenes.TILE)[0].astype(float).mean(0)
    cells = tile.reshape(4, 28, 4, 28).transpose(0, 2, 1, 3).reshape(16, -1)
    contrast = {word: [] for word in set(tiles[0])}
    for cell, word in zip(cells, tiles[0]):
        contrast[word].append(np.ptp(cell))
    assert max(contrast[questions.DIGIT_NAMES[shown[0][0]]]) > max(contrast[scenes.BLANK])


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "data"
    path.write_text("")
    with pytest.raises(DataError, match="name a folder"):
        build_data.build_demo_data(path)
