"""The loader: the same global steps on any cluster, exact resume, and bad samples named."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.loading import build_loader
from helpers.shard_writing import draw_image, make_sample, write_shard
from PIL import ExifTags, Image

from nvlm.batch import MicroBatch, SkippedSample, check_micro_batch
from nvlm.config import RunConfig, changed
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading import reader as reader_module
from nvlm.data.loading.ahead import one_ahead
from nvlm.data.loading.loader import Loader, num_prefetched
from nvlm.data.order.planner import Planner, iterate_order
from nvlm.data.shards.shard import ShardReader
from nvlm.errors import DataError
from nvlm.sizes.visual import VisualLayout

NUM_STEPS = 5


def read_steps(
    config: RunConfig, data_size: int, num_steps: int = NUM_STEPS, state: dict | None = None
) -> tuple[list[list[MicroBatch]], list[dict], list[list[SkippedSample]]]:
    """Of each global step: micro-batches of all ranks in order, the state after it, the skipped."""
    indexes = open_indexes(config)
    ranks = [
        list(itertools.islice(build_loader(config, indexes, rank, data_size, state), num_steps))
        for rank in range(data_size)
    ]
    steps, states, skipped = [], [], []
    for batches in zip(*ranks):
        steps.append([micro_batch for batch in batches for micro_batch in batch.micro_batches])
        assert all(batch.data_state == batches[0].data_state for batch in batches)
        states.append(json.loads(json.dumps(batches[0].data_state)))
        skipped.append([sample for batch in batches for sample in batch.skipped])
    return steps, states, skipped


@pytest.fixture(scope="module")
def whole(config_in, tmp_path_factory) -> tuple[list, list, list]:
    """What one process reads, without workers."""
    return read_steps(config_in(tmp_path_factory.mktemp("whole")), 1)


def assert_same(first: list[list[MicroBatch]], second: list[list[MicroBatch]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert one.sample_keys == other.sample_keys
        for name in ("tokens", "labels", "position_ids", "image_mask", "cu_seqlens", "tiles"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_batches_keep_the_contract(make_config):
    for overrides in (["train.micro_batch_size=2"], ["stage.packing=false"]):
        config = make_config(*overrides)
        steps, _, skipped = read_steps(config, 1)
        assert not any(skipped)
        num_tokens = config.train.micro_batch_size * config.stage.sequence_length
        for micro_batch in itertools.chain(*steps):
            check_micro_batch(micro_batch, VisualLayout.from_config(config))
            assert micro_batch.tokens.shape == (1, num_tokens)
            assert micro_batch.tiles.dtype == torch.uint8
            assert micro_batch.loss_mask().sum() > 0
            assert micro_batch.num_tiles <= 24 * config.train.micro_batch_size
        if not config.stage.packing:
            assert {len(m.sample_keys) for m in itertools.chain(*steps)} == {1}


@pytest.mark.parametrize(
    ("data_size", "num_workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (4, 0), (4, 2)]
)
def test_order_is_independent_of_the_cluster(make_config, whole, data_size: int, num_workers: int):
    steps, states, _ = read_steps(make_config(f"data.num_workers={num_workers}"), data_size)
    reference, reference_states, _ = whole
    assert_same(steps, reference)
    assert states == reference_states
    planned = [packs for _, packs in iterate_order(make_config(), NUM_STEPS)]
    assert [[m.sample_keys for m in step] for step in steps] == planned


@pytest.mark.parametrize(
    ("before", "after"), [((1, 0), (4, 1)), ((4, 2), (2, 0)), ((2, 1), (1, 2))]
)
def test_resume_on_another_cluster(
    make_config, whole, before: tuple[int, int], after: tuple[int, int]
):
    """(data size, workers) before and after an interruption."""
    whole, _, _ = whole
    first, states, _ = read_steps(make_config(f"data.num_workers={before[1]}"), before[0])
    assert_same(first, whole)
    config = make_config(f"data.num_workers={after[1]}")
    for step in (1, 4):
        rest, rest_states, _ = read_steps(config, after[0], NUM_STEPS - step, states[step - 1])
        assert_same(rest, whole[step:])
        assert rest_states == states[step:]


def test_cluster_that_changes_all_the_time(make_config, whole):
    """Every step another number of ranks and workers, from the position of the step before."""
    whole, _, _ = whole
    state = None
    for step, (data_size, num_workers) in enumerate([(1, 2), (4, 0), (2, 1), (1, 0), (4, 2)]):
        config = make_config(f"data.num_workers={num_workers}")
        ((micro_batches,), (state,), _) = read_steps(config, data_size, 1, state)
        assert_same([micro_batches], whole[step : step + 1])


def test_rank_reads_only_what_it_trains_on(make_config, monkeypatch):
    """Every sample that a rank's steps hold is read once, by that rank, and nothing else is."""
    read: Counter[tuple[str, int, int]] = Counter()
    original = ShardReader.read

    def counting(self, shard, where):
        read[shard, where.offset, where.size] += 1
        return original(self, shard, where)

    monkeypatch.setattr(ShardReader, "read", counting)
    config = make_config()
    indexes = {index.source: index for index in open_indexes(config)}
    rows = {
        f"{name}/{index.key(row)}": row
        for name, index in indexes.items()
        for row in range(len(index))
    }
    num_bytes = []
    for rank in range(4):
        read.clear()
        batches = list(
            itertools.islice(build_loader(config, list(indexes.values()), rank, 4), NUM_STEPS)
        )
        expected: Counter[tuple[str, int, int]] = Counter()
        for batch in batches:
            for key in batch.micro_batches[0].sample_keys:
                index, row = indexes[key.split("/")[0]], rows[key]
                ranges = [*index.text_ranges(row).values(), *index.image_ranges(row)]
                for where in ranges:
                    expected[str(index.shard_path(row)), where.offset, where.size] += 1
        assert read == expected
        num_bytes.append(sum(size * count for (_, _, size), count in read.items()))
    # Measured: between 21 and 30 % of what all ranks read.
    assert max(num_bytes) < 0.5 * sum(num_bytes)


def test_prefetched_tiles_are_bounded(make_config):
    few = make_config("data.num_workers=8")
    assert num_prefetched(few) == 4
    large = {
        "model.vision.image_size": 448,
        "stage.sequence_length": 16384,
        "stage.max_tiles_per_sequence": 58,
        "model.language.max_position_embeddings": 16384,
    }
    # 8 workers x 58 tiles of 0.6 MB are 0.28 GB.
    assert num_prefetched(changed(few, large)) == 3


def test_resume_with_another_seed_is_refused(make_config):
    _, states, _ = read_steps(make_config(), 1, num_steps=1)
    config = make_config("train.seed=5")
    with pytest.raises(DataError, match=r"train\.seed was 1234, is 5"):
        build_loader(config, open_indexes(config), 0, 1, states[0])


def test_loading_leaves_the_training_generator_alone(make_config):
    for num_workers in (0, 1):
        torch.manual_seed(11)
        expected = torch.rand(1)
        torch.manual_seed(11)
        read_steps(make_config(f"data.num_workers={num_workers}"), 1, num_steps=1)
        assert torch.equal(torch.rand(1), expected)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Six good samples; one image cut short after its header, one JSON cut short, one too long."""
    image = draw_image(200, 200)
    samples = [make_sample(f"good{i}", "What?", "That.", [image]) for i in range(6)]
    half = make_sample("half", "What?", "That.", [image[: len(image) // 2]])
    cut = make_sample("cut", "What?", "That.", [image]) | {"json": b'{"messages": [{"role"'}
    long = make_sample("long", "What? " * 1000, "That.", [image])
    write_shard(
        tmp_path / "data" / "train" / "a.tar", [*samples[:3], half, cut, long, *samples[3:]]
    )
    return tmp_path / "data"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("data_size", [1, 2])
def test_bad_samples_are_named_and_training_goes_on(
    make_config, damaged: Path, num_workers: int, data_size: int
):
    config = make_config(f"data.root={damaged}", f"data.num_workers={num_workers}")
    steps, states, skipped_by_step = read_steps(config, data_size)
    skipped = [sample for of_step in skipped_by_step for sample in of_step]
    assert all(s.source == "train" and s.shard == "a.tar" for s in skipped)
    named = [(s.key, s.reason) for s in skipped]
    # Whenever they are drawn. What the index rejects is never drawn.
    assert set(named) == {("half", "image"), ("long", "too_long")}
    assert [r.key for r in open_indexes(config)[0].rejected] == ["cut"]
    keys = [key for step in steps for m in step for key in m.sample_keys]
    assert set(keys) == {f"train/good{i}" for i in range(6)}
    for micro_batch in itertools.chain(*steps):
        check_micro_batch(micro_batch, VisualLayout.from_config(config))
    # Its place is padding: the plan counts it, the batch does not.
    planned = [packs for _, packs in iterate_order(config, NUM_STEPS)]
    for step, packs in zip(steps, planned, strict=True):
        for micro_batch, pack in zip(step, packs, strict=True):
            assert micro_batch.sample_keys == [key for key in pack if key != "train/half"]
    # The same at any size, and after a resume.
    assert [sorted(map(str, of_step)) for of_step in skipped_by_step] == [
        sorted(map(str, of_step)) for of_step in read_steps(config, 1)[2]
    ]
    assert read_steps(config, data_size, NUM_STEPS - 1, states[0])[2] == skipped_by_step[1:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_repairs_of_used_samples_are_counted(make_config, tmp_path: Path, num_workers: int):
    image = Image.open(io.BytesIO(draw_image(120, 90)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = {"rotated": io.BytesIO(), "transparent": io.BytesIO(), "gray": io.BytesIO()}
    image.save(files["rotated"], "PNG", exif=exif)
    image.convert("RGBA").save(files["transparent"], "PNG")
    image.convert("L").save(files["gray"], "PNG")
    samples = [make_sample(key, "What?", "That.", [f.getvalue()]) for key, f in files.items()]
    # What is left out is not repaired.
    cut = files["transparent"].getvalue()
    samples.append(make_sample("cut", "What?", "That.", [cut[: len(cut) // 2]]))
    root = tmp_path / "data"
    write_shard(root / "train" / "odd" / "odd.tar", samples)
    config = make_config(f"data.root={root}", f"data.num_workers={num_workers}")
    loader = iter(build_loader(config, open_indexes(config), 0, 1))
    total: Counter[str] = Counter()
    for batch in itertools.islice(loader, 4):
        keys = [key for micro_batch in batch.micro_batches for key in micro_batch.sample_keys]
        used = {
            "odd/alpha_dropped": keys.count("odd/transparent"),
            "odd/converted_to_rgb": keys.count("odd/gray"),
            "odd/rotated": keys.count("odd/rotated"),
        }
        assert batch.repaired == {what: number for what, number in used.items() if number}
        total.update(used)
    assert min(total.values()) > 0


def test_shard_removed_in_mid_run(make_config, damaged: Path):
    config = make_config(f"data.root={damaged}")
    loader = iter(build_loader(config, open_indexes(config), 0, 1))
    (damaged / "train" / "a.tar").unlink()
    batch = next(loader)
    assert {s.reason for s in batch.skipped if s.key.startswith("good")} == {"read"}
    assert batch.micro_batches[0].loss_mask().sum() == 0


def test_shard_rewritten_in_mid_run(make_config, damaged: Path):
    config = make_config(f"data.root={damaged}")
    loader = iter(build_loader(config, open_indexes(config), 0, 1))
    shard = damaged / "train" / "a.tar"
    # As many bytes, but other tokens.
    shard.write_bytes(shard.read_bytes().replace(b"What?", b"7?7?7"))
    with pytest.raises(DataError, match=r"a\.tar: sample good.*shard changed during the run"):
        next(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_our_own_errors_are_not_swallowed(make_config, monkeypatch, num_workers: int):
    def broken(*_):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(reader_module, "cut_tiles", broken)
    config = make_config(f"data.num_workers={num_workers}")
    with pytest.raises(TypeError, match="a mistake of ours"):
        read_steps(config, 1, num_steps=2)


def test_workers_end_with_the_loader(make_config):
    config = make_config("data.num_workers=2")
    before = child_processes()
    steps = iter(build_loader(config, open_indexes(config), 0, 1))
    gc.unfreeze()
    next(steps)
    workers = child_processes() - before
    assert len(workers) >= 2
    # Memory that they share with us stays shared: the garbage collector leaves it alone.
    assert gc.get_freeze_count() > 0
    steps.close()
    assert not workers & child_processes()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tiles_are_on_their_way_before_their_step_is_asked_for(make_config, num_workers: int):
    config = make_config(f"data.num_workers={num_workers}", "train.micro_batch_size=2")
    (expected, _, _) = read_steps(config, 1)
    sent: list[torch.Tensor] = []

    def copy_ahead(tensor: torch.Tensor):
        sent.append(tensor)
        return lambda: tensor

    loader = Loader(config, Planner(config, open_indexes(config)), 0, 1, copy_ahead)
    steps = iter(loader)
    for number, micro_batches in enumerate(itertools.islice(expected, NUM_STEPS)):
        step = next(steps)
        if num_workers:
            for _ in range(600):  # a minute at most
                if len(sent) >= 2 * (number + 2):
                    break
                time.sleep(0.1)
            assert len(sent) == 2 * (number + 2), "one step ahead, and no more"
        assert not any(m.num_tiles for m in step.micro_batches)
        for arriving, micro_batch in zip(step.tiles_ahead, micro_batches, strict=True):
            assert torch.equal(arriving(), micro_batch.tiles)
    # What is on its way is nobody else's memory.
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == len(sent)
    steps.close()


def test_one_step_is_fetched_ahead():
    fetched = threading.Semaphore(0)
    closed = threading.Event()

    def numbers():
        try:
            for number in (1, 2, 3):
                fetched.release()
                yield number
            raise DataError("no more")
        finally:
            closed.set()

    ahead = one_ahead(numbers())
    assert next(ahead) == 1
    # The second comes unasked, the third does not.
    assert fetched.acquire(timeout=30) and fetched.acquire(timeout=30)
    assert not fetched.acquire(timeout=0.1)
    assert [next(ahead), next(ahead)] == [2, 3]
    with pytest.raises(DataError, match="no more"):
        next(ahead)
    assert closed.is_set()


def test_closing_closes_what_is_fetched_ahead():
    closed = threading.Event()

    def ones():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = one_ahead(ones())
    assert next(ahead) == 1
    ahead.close()
    assert closed.is_set()
    assert list(one_ahead(number for number in ())) == []


def child_processes() -> set[str]:
    """Others than this test's may live: earlier tests of the process started some."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_a_fetch_that_never_ends_is_not_waited_for():
    """A worker was killed as it sent an item: the thread reads on, and a handler raises here."""
    forever = threading.Event()

    def items():
        yield 1
        forever.wait()
        yield 2

    def raise_an_error(*_) -> None:
        raise RuntimeError("a worker was killed")

    before = signal.signal(signal.SIGUSR1, raise_an_error)
    ahead = one_ahead(items())
    try:
        assert next(ahead) == 1
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(RuntimeError, match="a worker was killed"):
            next(ahead)
        ahead.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
        forever.set()
