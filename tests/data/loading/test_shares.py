"""A step read by shares is the step that one process reads alone, damaged samples included."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from helpers.videos import make_video
from PIL import ExifTags, Image
from torch import Tensor

from nvlm.batch import MicroBatch, StepBatch, StepPart
from nvlm.config import RunConfig
from nvlm.config.changed import changed_section
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading import reader as reader_module
from nvlm.data.loading.loader import Loader
from nvlm.data.order.planner import Planner
from nvlm.data.shards.shard import ShardReader
from nvlm.errors import DataError
from nvlm.parallel.tiles import Share, without_dropped

NUM_STEPS = 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of 1 to 7 tiles, several in a sample, some damaged, some repaired; a video; text."""
    root = tmp_path / "data" / "train"
    sizes = [(100, 90), (640, 480), (300, 100), (90, 400)]
    samples = []
    for number in range(12):
        images = [draw_image(*sizes[(number + i) % 4], seed=number) for i in range(1 + number % 3)]
        if number % 4 == 2:
            images[-1] = rotated(images[-1])
        if number in (5, 8):  # the header is whole, so that the index takes it
            images[-1] = images[-1][: len(images[-1]) // 2]
        samples.append(make_sample(f"s{number:02d}", "What? " * (number + 1), "That.", images))
    write_shard(root / "mixed" / "mixed.tar", samples)
    texts = [make_sample(f"t{number}", f"What is {number}?", "It.", []) for number in range(5)]
    write_shard(root / "text" / "text.tar", texts)
    film = {"json": as_json(("user", "<video>\nWhat?"), ("assistant", "That."))}
    films = [{"__key__": f"f{n}", **film, "mp4": make_video(5 + n)} for n in range(3)]
    write_shard(root / "film" / "film.tar", films)
    return root.parent


def rotated(image: bytes) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(image)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.fixture
def config(make_config, data: Path):
    def make(*overrides: str) -> RunConfig:
        return make_config(f"data.root={data}", "data.blend=null", *overrides)

    return make


def read_alone(config: RunConfig, data_rank: int = 0, data_size: int = 1) -> list[StepBatch]:
    loader = Loader(config, Planner(config, open_indexes(config)), data_rank, data_size)
    return list(itertools.islice(loader, NUM_STEPS))


def read_share(config: RunConfig, share: Share, *ranks: int) -> list[StepPart]:
    planner = Planner(config, open_indexes(config))
    return list(
        itertools.islice(Loader(config, planner, *(ranks or (0, 1)), None, share), NUM_STEPS)
    )


def shares_of(num_shares: int) -> list[Share]:
    return [Share(number, num_shares) for number in range(num_shares)]


def together(parts: list[StepPart]) -> tuple[StepBatch, list[int], Tensor, list[int]]:
    """The step, the tiles of its micro-batches, all tiles, and how many each share has."""
    assert [part.assemble is not None for part in parts] == [True] + [False] * (len(parts) - 1)
    whole = parts[0].assemble([part.findings for part in parts])
    num_planned = parts[0].findings.num_tiles
    left = [
        without_dropped(part.tiles, num_planned, whole.dropped, share)
        for part, share in zip(parts, shares_of(len(parts)), strict=True)
    ]
    sizes = left[0][1]
    assert [len(tiles) for tiles, _ in left] == sizes
    assert all(other == sizes for _, other in left)
    return whole.step, whole.num_tiles, torch.cat([tiles for tiles, _ in left]), sizes


def is_same(mine: object, other: object) -> bool:
    both = isinstance(mine, Tensor) and isinstance(other, Tensor)
    return torch.equal(mine, other) if both else mine == other


def assert_same(alone: StepBatch, parts: list[StepPart]) -> None:
    step, num_tiles, tiles, _ = together(parts)
    for ours, theirs in zip(step.micro_batches, alone.micro_batches, strict=True):
        for name in {field.name for field in fields(MicroBatch)} - {"tiles"}:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if name == "beside" and mine is not None:
                for part, value in vars(mine).items():
                    assert is_same(value, getattr(other, part)), part
                continue
            assert is_same(mine, other), name
    assert num_tiles == [m.num_tiles for m in alone.micro_batches]
    assert torch.equal(tiles, torch.cat([m.tiles for m in alone.micro_batches]))
    for name in ("skipped", "data_state", "shortened", "repaired"):
        assert getattr(step, name) == getattr(alone, name), name


@pytest.mark.parametrize(
    ("num_shares", "num_workers", "micro_batch"),
    [(1, 0, 1), (2, 0, 2), (3, 0, 1), (3, 2, 2), (8, 0, 4), (60, 0, 1)],
)
def test_a_step_read_by_shares_is_the_same(
    config, num_shares: int, num_workers: int, micro_batch: int
):
    run = config(f"data.num_workers={num_workers}", f"train.micro_batch_size={micro_batch}")
    alone = read_alone(run)
    assert {s.key for step in alone for s in step.skipped} == {"s05", "s08"}
    assert sum((Counter(step.repaired) for step in alone), Counter())["mixed/rotated"] > 1
    by_share = [read_share(run, share) for share in shares_of(num_shares)]
    for step, *parts in zip(alone, *by_share, strict=True):
        assert_same(step, parts)
        num_read = [len(part.tiles) for part in parts]
        assert max(num_read) - min(num_read) <= 1


def test_a_step_whose_tiles_are_stacked_read_by_shares_is_the_same(config):
    run = changed_section(config("data.num_workers=0"), {"model.deepstack": "tiles"})
    alone = read_alone(run)
    for step, *parts in zip(
        alone, *(read_share(run, share) for share in shares_of(3)), strict=True
    ):
        assert_same(step, parts)
    micro_batches = [micro_batch for step in alone for micro_batch in step.micro_batches]
    assert len({grid for micro_batch in micro_batches for grid in micro_batch.grids}) > 2


@pytest.mark.parametrize("fusion", ["cross_attention", "hybrid"])
def test_a_step_with_tiles_beside_its_sequences_read_by_shares_is_the_same(config, fusion: str):
    # Not through the checks: this run's sequences are longer than such a stage needs.
    fused = {"model.fusion": fusion, "model.cross_attention": {"layer_interval": 2}}
    run = changed_section(config("data.num_workers=0"), fused)
    alone = read_alone(run)
    for step, *parts in zip(
        alone, *(read_share(run, share) for share in shares_of(3)), strict=True
    ):
        assert_same(step, parts)
    rows = [micro_batch.beside for step in alone for micro_batch in step.micro_batches]
    assert sum(len(row.tiles) for row in rows if row is not None) > 20


def test_data_ranks_share_their_own_steps(config):
    run = config()
    for data_rank in range(2):
        by_share = [read_share(run, share, data_rank, 2) for share in shares_of(2)]
        for step, *parts in zip(read_alone(run, data_rank, 2), *by_share, strict=True):
            assert_same(step, parts)


def test_images_are_read_by_who_has_their_tiles_and_texts_once(config, monkeypatch):
    run = config("data.blend={mixed: 1, text: 1}")
    read: Counter[tuple[str, int, int]] = Counter()
    original = ShardReader.read

    def counting(self, shard, where):
        read[shard, where.offset, where.size] += 1
        return original(self, shard, where)

    monkeypatch.setattr(ShardReader, "read", counting)
    indexes = open_indexes(run)
    texts = {
        (str(index.shard_path(row)), where.offset, where.size)
        for index in indexes
        for row in range(len(index))
        for where in index.text_ranges(row).values()
    }
    read.clear()
    read_alone(run)
    expected = dict(read)
    counts, num_images = Counter(), []
    for share in shares_of(3):
        read.clear()
        read_share(run, share)
        counts.update(read)
        num_images.append(sum(n for where, n in read.items() if where not in texts))
        if share.number:
            assert not texts & read.keys()
    assert {where: n for where, n in counts.items() if where in texts} == {
        where: n for where, n in expected.items() if where in texts
    }
    # One image may lie across each border of two shares.
    num_alone = sum(n for where, n in expected.items() if where not in texts)
    assert num_alone <= sum(num_images) <= num_alone + 2 * NUM_STEPS
    assert max(num_images) < 0.6 * num_alone


def test_a_run_goes_on_by_shares(config):
    run = config()
    whole = read_alone(run)
    parts = []
    for share in shares_of(2):
        planner = Planner(run, open_indexes(run))
        planner.load_state(whole[1].data_state)
        parts.append(list(itertools.islice(Loader(run, planner, 0, 1, None, share), 2)))
    for step, *of_step in zip(whole[2:], *parts, strict=True):
        assert_same(step, of_step)


def test_the_end_of_the_data_is_the_same(config):
    run = config("data.blend={text: {weight: 1, max_epochs: 1}}")
    alone = read_alone(run)
    assert 0 < len(alone) < NUM_STEPS
    by_share = [read_share(run, share) for share in shares_of(2)]
    for step, *parts in zip(alone, *by_share, strict=True):
        assert_same(step, parts)


def test_a_shard_that_vanishes_is_named_as_alone(config, data: Path):
    run = config("data.blend={mixed: 1}")
    loaders = [Loader(run, Planner(run, open_indexes(run)), 0, 1)]
    for share in shares_of(2):
        loaders.append(Loader(run, Planner(run, open_indexes(run)), 0, 1, None, share))
    (data / "train" / "mixed" / "mixed.tar").unlink()
    alone, *parts = [next(iter(loader)) for loader in loaders]
    assert {sample.reason for sample in alone.skipped} == {"read"}
    assert_same(alone, parts)
    assert together(parts)[3] == [0, 0]


def test_shares_of_different_plans_are_refused(config):
    first = read_share(config("train.seed=1"), Share(0, 2))[0]
    other = read_share(config("train.seed=2"), Share(1, 2))[0]
    assert first.findings.num_tiles != other.findings.num_tiles
    with pytest.raises(DataError, match=r"of one replica planned steps of \[\d+, \d+\] tiles"):
        first.assemble([first.findings, other.findings])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_our_own_errors_are_not_swallowed(config, monkeypatch, num_workers: int):
    def broken(*_):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(reader_module, "cut_tiles", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        read_share(config(f"data.num_workers={num_workers}"), Share(1, 2))
