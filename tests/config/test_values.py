"""What is written becomes what its key takes, and is never taken for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError

TINY = REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml"


def load(key: str, written: str, folder: Path, in_file: bool):
    """The value of `key` (of a section) written into a file or given as an override."""
    section, name = key.split(".")
    if in_file:
        (folder / "run.yaml").write_text(f"base: {TINY}\n{section}: {{{name}: {written}}}\n")
        config = load_config(folder / "run.yaml")
    else:
        config = load_config(TINY, [f"{key}={written}"])
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    "key, written, value",
    [
        ("train.steps", "1_000", 1000),
        ("train.steps", '"50"', 50),
        ("train.steps", "+50", 50),
        ("train.seed", "0", 0),
        ("train.seed", "4294967295", 4294967295),
        ("stage.packing", "no", False),
        ("stage.packing", "TRUE", True),
        # Names that YAML 1.1 reads as false, 8000.0, 90, 8, 16, a date and 1.1.
        *[("run.name", n, n) for n in ("no", "8e3", "1:30", "010", "0x10", "2026-11-25", "1.10")],
        ("data.max_skipped_share", "5e-2", 0.05),
        ("data.max_skipped_share", ".5", 0.5),
        ("data.max_image_megapixels", "1e3", 1000.0),
        ("data.index_dir", "null", None),
        ("stage.system_message", "yes", "yes"),
        ("stage.system_message", '"a\\nb"', "a\nb"),
        ("stage.freeze", "[no, 010]", ["no", "010"]),
        ("parallel.layout", "auto", "auto"),
        ("parallel.layout", "[4]", [4]),
    ],
)
def test_written_values(key: str, written: str, value: object, in_file: bool, tmp_path: Path):
    found = load(key, written, tmp_path, in_file)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    "key, written, expected",
    [
        ("train.steps", "010", "must be a whole number without leading zeros of at least 1"),
        ("train.steps", "true", "must be a whole number of at least 1, found 'true'"),
        *[
            ("parallel.layout", written, "must be even, auto or the decoder layers of each")
            for written in ("uneven", "4", "[]", "[[]]", "[2, 02]", "[2, [2]]", "[-1, 5]", "{a: 4}")
        ],
        ("train.steps", "0x10", "must be a whole number"),
        ("train.steps", "1:30", "must be a whole number"),
        ("train.steps", "5.0", "must be a whole number of at least 1, found 5.0"),
        ("train.steps", "1e3", "must be a whole number"),
        ("train.steps", "٣", "must be a whole number"),
        ("train.steps", "99999999999999999999", "must be a whole number from 1 to 2147483647"),
        ("train.steps", "9" * 5000, "must be a whole number"),
        ("train.seed", "99999999999999999999", "must be a whole number from 0 to 4294967295"),
        ("train.seed", "-1", "must be a whole number from 0"),
        ("data.num_workers", "1000000", "must be a whole number from 0 to 1024"),
        ("stage.packing", "1", "must be true or false, found 1"),
        ("stage.packing", "maybe", "must be true or false, found 'maybe'"),
        ("data.max_image_megapixels", "1e400", "at most 1e+40, found 1e400"),
        ("data.max_image_megapixels", ".nan", "must be a number greater than 0"),
        ("data.max_image_megapixels", "true", "must be a number greater than 0"),
        ("data.max_image_megapixels", "010", "must be a number without leading zeros greater"),
        ("data.max_skipped_share", "2", "greater than 0 and at most 1, found 2"),
        ("run.name", '"a\\nb"', r"of one line, without control characters, found 'a\nb'"),
        ("run.name", '"\\ud800"', r"found '\ud800'"),
        ("stage.system_message", '"\\x07"', r"without control characters, found '\x07'"),
    ],
)
def test_refused_values(key: str, written: str, expected: str, in_file: bool, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(key, written, tmp_path, in_file)
    assert f"{key}: " in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
