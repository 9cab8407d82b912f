"""`nvlm generate` from image files to text."""

from __future__ import annotations

import generate_case
import numpy as np
import pytest
import small_model
from PIL import Image

from nvlm.errors import CheckpointError, DataError
from nvlm.generate.answer import answer
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
    with_image = answer(checkpoint, "What is this?", [picture], max_new_tokens=8)
    again = answer(checkpoint, "<image>\nWhat is this?", [picture], max_new_tokens=8)
    without = answer(checkpoint, "What is this?", [], max_new_tokens=8)
    assert with_image == again
    assert with_image and without and with_image != without


def test_bad_input_is_named(checkpoint, picture, tmp_path):
    with pytest.raises(DataError, match=r"2 <image> marks in the prompt for 1 images"):
        answer(checkpoint, "<image> <image> the same?", [picture], 4)
    with pytest.raises(DataError, match=r"missing\.png"):
        answer(checkpoint, "What?", [tmp_path / "missing.png"], 4)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: text"):
        answer(checkpoint, "What?", [broken], 4)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        answer(tmp_path / "nowhere", "What?", [picture], 4)
