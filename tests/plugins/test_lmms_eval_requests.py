"""lmms-eval's messages and settings become turns, pictures and sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm.errors import ConfigError, DataError
from nvlm.generate.request import Sampling
from nvlm.plugins.lmms_eval_requests import as_trained, sampling_of

RED, BLUE = (Image.new("RGB", (4, 2), colour) for colour in ("red", "blue"))


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(picture: Image.Image | str) -> dict:
    return {"type": "image", "url": picture}


def test_pictures_stand_where_they_were():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image(RED), text("What is it?")]},
        {"role": "assistant", "content": [text("Red.")]},
        {"role": "user", "content": [text("And "), image(BLUE), text("here?")]},
    ]
    turns, images = as_trained(messages, 1)
    assert turns == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "And <image>\nhere?"},
    ]
    assert [pixels[0, 0].tolist() for pixels in images] == [[255, 0, 0], [0, 0, 255]]
    assert images[0].shape == (2, 4, 3) and images[0].dtype == np.uint8


def test_marks_of_the_text_are_the_places():
    content = [image(RED), image(BLUE), text("Left <image>, right <image>: which is red?")]
    turns, images = as_trained([{"role": "user", "content": content}], 1)
    assert turns[0]["content"] == "Left <image>, right <image>: which is red?"
    assert len(images) == 2


def test_files_are_read_by_the_rules_of_training(tmp_path: Path):
    RED.save(tmp_path / "red.png")
    messages = [{"role": "user", "content": [image(str(tmp_path / "red.png"))]}]
    assert as_trained(messages, 1)[1][0].shape == (2, 4, 3)
    with pytest.raises(DataError, match=r"blue\.png"):
        as_trained([{"role": "user", "content": [image(str(tmp_path / "blue.png"))]}], 1)
    with pytest.raises(DataError, match=r"red\.png.*megapixel"):
        as_trained(messages, 1e-6)


def test_other_media_are_refused():
    video = {"type": "video", "url": "clip.mp4"}
    with pytest.raises(DataError, match="type video; only text and images"):
        as_trained([{"role": "user", "content": [video, text("?")]}], 1)


def test_settings_become_sampling():
    assert sampling_of({}, "t", 0) == Sampling(1024)
    greedy = {"do_sample": False, "temperature": 0.7, "max_new_tokens": 16, "until": ["\n\n"]}
    assert sampling_of(greedy, "t", 0) == Sampling(16, stop=("\n\n",))
    drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "until": "end", "num_beams": 1}
    assert sampling_of(drawn, "t", 3) == Sampling(1024, 0.7, 0.9, 5, seed=3, stop=("end",))
    assert sampling_of({"do_sample": True, "top_p": None}, "t", 0).temperature == 1


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"num_beams": 3}, "num_beams 3: there is no beam search"),
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": "many"}, "max_new_tokens.*many"),
        ({"until": [""]}, "stop"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, says: str):
    with pytest.raises(ConfigError, match=f"task ai2d: generation_kwargs.*{says}"):
        sampling_of(settings, "ai2d", 0)
