"""Held-out samples: always the same ones in the same order, and none that is trained on."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers.shard_writing import draw_image, make_sample, write_shard

from nvlm.config import RunConfig
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading.validation_data import ValidationData, open_validation_data
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError

ON = "validation.every=10"


@pytest.fixture
def root(shards: Path, tmp_path: Path) -> Path:
    """The small shards; held out are 11 samples of `single` and 9 of a source not trained on."""
    shutil.copytree(shards, tmp_path / "data")
    for source, number in (("single", 11), ("other", 9)):
        samples = [
            make_sample(
                f"{source}{i:03d}", "What?", "7 " * (i + 1), [draw_image(100 + 90 * i, 90, i)]
            )
            for i in range(number)
        ]
        write_shard(tmp_path / "data" / "heldout" / source / f"{source}-000000.tar", samples)
    return tmp_path / "data"


@pytest.fixture
def make(make_config, root: Path, tmp_path: Path):
    return lambda *more: make_config(
        f"data.root={root}", f"data.index_dir={tmp_path / 'index'}", ON, *more
    )


def opened(config: RunConfig) -> ValidationData:
    data = open_validation_data(config, open_indexes(config), SampleEncoder.from_config(config))
    assert data is not None
    return data


def keys(data: ValidationData, data_size: int = 1) -> list[list[str]]:
    """Of each step, over all data ranks."""
    ranks = [list(data.batches(rank, data_size)) for rank in range(data_size)]
    return [
        [key for step in steps for batch in step.micro_batches for key in batch.sample_keys]
        for steps in zip(*ranks, strict=True)
    ]


def test_one_pass_however_often_and_wherever(make):
    """Also where other ranks read, in a run of another seed, and one whose blend has max_epochs."""
    data = opened(make())
    first = keys(data)
    counts = Counter(key for step in first for key in step)
    assert counts == {
        **{f"single/single{i:03d}": 1 for i in range(11)},
        **{f"other/other{i:03d}": 1 for i in range(9)},
    }
    assert keys(data) == first
    assert keys(data, data_size=2) == first
    assert keys(opened(make("train.seed=77"))) == first
    blend = "data.blend={single: {max_epochs: 0.3, weight: 5}, text: 1}"
    assert keys(opened(make(blend))) == first


def test_so_many_samples_of_each_source(make):
    some = keys(opened(make("validation.samples=4")))
    assert Counter(key.partition("/")[0] for step in some for key in step) == {
        "single": 4,
        "other": 4,
    }
    more = keys(opened(make("validation.samples=10", "validation.sources=[single]")))
    assert len({key for step in more for key in step}) == 10
    assert {key for step in some for key in step if "single/" in key} < {
        key for step in more for key in step
    }


def test_settings_are_those_of_the_blend(make):
    """Tiles and weights of losses, for the source that has them; the numbers say whose is whose."""
    blend = "data.blend={single: {max_num_tiles: 1, loss_weight: 3.0}}"
    data = opened(make(blend))
    weights: dict[str, set[float]] = {}
    for step in data.batches(0, 1):
        assert list(step.epochs) == ["other", "single"]
        for batch in step.micro_batches:
            assert batch.source_numbers is not None
            names = {key.partition("/")[0] for key in batch.sample_keys}
            numbers = batch.source_numbers[batch.loss_mask().bool()].unique().tolist()
            assert {list(step.epochs)[number] for number in numbers} == names
            for number in numbers:
                own = batch.weights()[(batch.source_numbers == number) & (batch.weights() > 0)]
                weights.setdefault(list(step.epochs)[number], set()).update(own.tolist())
    assert weights == {"single": {3.0}, "other": {1.0}}
    assert step.epochs == {"other": 1.0, "single": 1.0}


def test_without_validation_nothing_is_looked_at(make, root):
    shutil.rmtree(root / "heldout")
    config = make("validation.every=null")
    assert (
        open_validation_data(config, open_indexes(config), SampleEncoder.from_config(config))
        is None
    )


def test_other_splits_are_refused_by_name(make):
    with pytest.raises(DataError, match=r"split nothing: .*has heldout, train"):
        opened(make("validation.split=nothing"))
    with pytest.raises(DataError, match=r"split train is data\.split, what the run trains on"):
        opened(make("validation.split=train"))
    with pytest.raises(DataError, match=r"sources: no maps in .*heldout, which has other, single"):
        opened(make("validation.sources=[other, maps]"))


def test_what_is_trained_on_is_refused(make, root, tmp_path):
    """A shard that the blend takes from there, a hard link of one, and a copied source."""
    blend = f"data.blend={{single: 1, mine: {{path: {root}/heldout/other}}}}"
    with pytest.raises(DataError, match=r"other-000000\.tar of source mine is also trained on, by"):
        opened(make(blend))
    linked = root / "heldout" / "linked" / "linked-000000.tar"
    linked.parent.mkdir()
    os.link(root / "train" / "text" / "text-000000.tar", linked)
    with pytest.raises(DataError, match=r"linked-000000\.tar of source linked is also .* text of"):
        opened(make())
    linked.unlink()
    shutil.copytree(root / "train" / "pairs", root / "heldout" / "copied")
    with pytest.raises(DataError, match="source copied has the same 10 samples as source pairs"):
        opened(make())


def test_what_cannot_be_used_is_refused(make, root):
    pages = [{"__key__": f"p{i}", "json": b'{"messages": 3}'} for i in range(60)]
    write_shard(root / "heldout" / "pages" / "pages-000000.tar", pages)
    with pytest.raises(
        DataError, match=r"validation\.split heldout: 60 of 80 samples are rejected"
    ):
        opened(make())
    with pytest.raises(DataError, match=r"split heldout: source pages: none of its samples can"):
        opened(make("data.max_skipped_share=1"))
