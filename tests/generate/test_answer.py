"""`nvlm generate` from image files to text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import generate_case, small_model
from PIL import Image

from nvlm.errors import CheckpointError, DataError
from nvlm.generate.answer import answer
from nvlm.generate.request import Sampling
from nvlm.parallel.groups import initialize, shut_down


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = small_model.small_config("model.language.init_std=0.2")
    target = tmp_path_factory.mktemp("answer") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 300, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def test_answers_from_files(checkpoint, picture):
    with_image = answer(checkpoint, "What is this?", [picture], Sampling(8))
    again = answer(checkpoint, "<image>\nWhat is this?", [picture], Sampling(8))
    without = answer(checkpoint, "What is this?", [], Sampling(8))
    assert with_image == again
    assert with_image and without and with_image != without


def test_images_are_held_to_the_rules_of_training(checkpoint, picture, tmp_path, capsys):
    """Limits and repairs are those of the checkpoint's configuration."""
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    turned = tmp_path / "turned.jpg"
    Image.open(picture).save(turned, exif=exif)
    answer(checkpoint, "What?", [turned], Sampling(1))
    assert "turned.jpg: EXIF rotation is applied" in capsys.readouterr().err
    limited = shutil.copytree(checkpoint, tmp_path / "limited")
    config = yaml.safe_load((limited / "config.yaml").read_text())
    config["data"]["max_image_megapixels"] = 0.01
    (limited / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"if the change is yours, remove .*files\.json"):
        answer(limited, "What?", [picture], Sampling(1))
    (limited / "files.json").unlink()
    with pytest.raises(
        DataError, match=r"picture\.png: 300 x 150 pixels, over data\.max_image_meg"
    ):
        answer(limited, "What?", [picture], Sampling(1))


@pytest.mark.parametrize("prompt", ["", "  \n", "a\0b", "half \ud800", "<video>\nWhat happens?"])
def test_a_prompt_is_a_text(checkpoint, prompt):
    with pytest.raises(DataError, match="--prompt"):
        answer(checkpoint, prompt, [], Sampling(1))


def test_too_long_is_said_before_loading(checkpoint):
    with pytest.raises(DataError, match="positions"):
        answer(checkpoint, "What?", [], Sampling(10**6))


def test_bad_input_is_named(checkpoint, picture, tmp_path):
    with pytest.raises(DataError, match=r"2 <image> marks in the prompt for 1 images"):
        answer(checkpoint, "<image> <image> the same?", [picture], Sampling(4))
    os.mkfifo(tmp_path / "pipe.png")
    for path, problem in (
        (tmp_path / "missing.png", "No such file"),
        (tmp_path, "a folder, expected a file"),
        (tmp_path / "pipe.png", "a pipe, expected a file"),
        (Path("/dev/zero"), "a device, expected a file"),
    ):
        with pytest.raises(DataError, match=f"^--image {path}: .*{problem}"):
            answer(checkpoint, "What?", [path], Sampling(4))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: text"):
        answer(checkpoint, "What?", [broken], Sampling(4))
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        answer(tmp_path / "nowhere", "What?", [picture], Sampling(4))
