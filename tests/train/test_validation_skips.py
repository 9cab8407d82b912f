"""Held-out samples that cannot be read are left out, counted and named; without any, it ends."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from helpers import layout_steps
from helpers.shard_writing import corrupt_members, draw_image, make_sample, write_shard
from rich.console import Console

from nvlm.config import load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading.validation_data import open_validation_data
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import ConfigError, DataError
from nvlm.train.start import Start
from nvlm.train.validation import Validation


@pytest.fixture
def config(make_config, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "data")
    samples = [make_sample(f"s{i}", "What?", "Seven.", [draw_image(100, 90, i)]) for i in range(6)]
    write_shard(tmp_path / "data" / "heldout" / "a" / "a-000000.tar", samples)
    return make_config(
        f"data.root={tmp_path / 'data'}",
        f"data.index_dir={tmp_path / 'index'}",
        "validation.every=1",
        "model.vision.num_layers=1",
        "model.language.num_layers=1",
        "train.precision=fp32",
    )


@pytest.mark.parametrize("num_damaged", [2, 6])
def test_damaged_samples(num_damaged: int, config, parallel):
    shard = Path(config.data.root) / "heldout" / "a" / "a-000000.tar"
    damaged = corrupt_members(shard, ".png", num_damaged)
    data = open_validation_data(config, open_indexes(config), SampleEncoder.from_config(config))
    output = io.StringIO()
    training = layout_steps.TwoSteps(config, parallel).training
    validation = Validation(training, Start(validation=data), Console(file=output, width=300))
    training.step = 1
    if num_damaged == 6:
        with pytest.raises(
            DataError, match=r"heldout: no sample can be used; the first is a a-0000"
        ):
            validation.after_step()
        return
    first, second = validation.after_step(), validation.after_step()
    assert first is not None and second is not None
    assert first["validation/skipped"] == 2
    assert first["validation/loss"] == second["validation/loss"] == first["validation/loss/a"]
    printed = output.getvalue()
    assert printed.count("validation: 2 samples left out; the first is a a-000000.tar s") == 1
    assert any(f".tar {key}: image: " in printed for key in damaged)
    assert printed.count("validation after step 1: loss") == 2


def test_questions_without_steps_to_ask_after():
    with pytest.raises(ConfigError, match=r"validation\.questions 3: nothing is asked: set valid"):
        load_config("configs/run/tiny/sft.yaml", ["validation.questions=3"])
