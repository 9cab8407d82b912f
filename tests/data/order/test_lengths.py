"""Planned lengths equal what is read; the ladder for samples that are too long; choices."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.shard_writing import as_json, draw_image, write_shard
from helpers.videos import make_video

from nvlm.batch import IGNORED_LABEL
from nvlm.config import RunConfig, changed
from nvlm.config.changed import changed_section
from nvlm.config.schema import SourceConfig
from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.loader import sample_request
from nvlm.data.loading.reader import MicroBatchReader, unpack
from nvlm.data.order.draws import Draws, PlannedDraws
from nvlm.data.order.fingerprint import check_same, data_fingerprint
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.samples.conversations import keep_turns
from nvlm.data.samples.prompts import load_prompt_pools
from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError

UNCHECKED: list[dict] = [
    {"sequence_length": 512},
    # Images lose tiles, conversations their last turns, long texts are left out.
    {"sequence_length": 160},
    {"sequence_length": 60},
    {"sequence_length": 300, "max_tiles_per_sequence": 7, "max_num_tiles": 4},
    {"sequence_length": 200, "tile_tags": "2d_grid", "max_num_tiles": 12},
    {"sequence_length": 200, "tile_tags": "2d_box", "use_thumbnail": False},
    {"tile_tags": "none", "use_thumbnail": False, "image_boundary": "separate"},
    {"fusion": "cross_attention", "sequence_length": 130, "max_tiles_per_sequence": 9},
    {"fusion": "cross_attention", "tile_tags": "none", "use_thumbnail": False},
    {"fusion": "hybrid", "sequence_length": 172, "max_tiles_per_sequence": 9},
    {"fusion": "hybrid", "tile_tags": "2d_box", "image_boundary": "separate"},
    {"deepstack": "tiles", "sequence_length": 172, "max_tiles_per_sequence": 9},
    {"tiling": "pad", "sequence_length": 200, "max_num_tiles": 9},
    {"tiling": "pad_skip", "sequence_length": 200, "max_num_tiles": 9},
    {"tiling": "pad_skip", "tile_tags": "2d_box", "use_thumbnail": False},
]


def with_stage(
    config: RunConfig, fusion: str = "decoder_only", deepstack: str = "none", **settings
) -> RunConfig:
    """Not through the checks: they refuse the tight lengths that make samples lose parts."""
    stage = {f"stage.{key}": value for key, value in settings.items()}
    cross = None if fusion == "decoder_only" else {"layer_interval": 2}
    model = {"model.fusion": fusion, "model.cross_attention": cross, "model.deepstack": deepstack}
    return changed_section(config, model | stage)


def plan_all(
    config: RunConfig, index: SourceIndex, epoch: int = 0
) -> tuple[PlannedSource, PlannedDraws]:
    source = PlannedSource(config, SourceConfig(), index)
    rows = np.arange(len(index))
    return source, source.plan(Draws.of_source(0, rows, np.full_like(rows, epoch)))


def encoded_length(
    config: RunConfig, encoder: SampleEncoder, index: SourceIndex, row: int, variant: int,
    max_num_tiles: int, num_turns: int,
) -> tuple[int, int]:  # fmt: skip
    """(tokens, tiles) of a sample read from its shard, as a worker would."""
    shard = str(index.shard_path(row))
    source = PlannedSource(config, SourceConfig(), index)
    grids = source.grids(row, max_num_tiles, num_turns)
    with ShardReader() as reader:
        texts = {n: reader.read(shard, where) for n, where in index.text_ranges(row).items()}
        places = index.image_ranges(row)
        images = [reader.read(shard, where) for where in places[: len(grids)]]
    sample = index.parser.parse(texts, len(places))
    tiles = [
        len(
            cut_tiles(
                decode_image(i),
                max_num_tiles,
                config.stage.use_thumbnail,
                112,
                tiling=config.stage.tiling,
            )
        )
        for i in images
    ]
    assert tiles == [encoder.visual.num_tiles(grid) for grid in grids]
    messages = keep_turns(sample.conversation(variant), num_turns)
    return len(encoder.encode(messages, grids).tokens), sum(tiles)


@pytest.mark.parametrize("settings", UNCHECKED, ids=str)
def test_planned_lengths_are_the_encoded_ones(make_config, settings: dict):
    config = with_stage(make_config(), **settings)
    stage = config.stage
    encoder = SampleEncoder.from_config(config)
    budget = stage.max_tiles_per_sequence or 10**9
    tiles_take_room = config.model.fusion == "decoder_only" and not config.model.stacks_tiles
    for index in open_indexes(config, encoder):
        source, plans = plan_all(config, index)
        tokens = source.account(plans)
        all_turns = np.diff(index.turn_starts)
        for row in range(len(index)):
            variant, limit = int(plans.variant[row]), int(plans.max_num_tiles[row])
            turns = int(plans.num_turns[row])
            found = encoded_length(config, encoder, index, row, variant, limit, turns)
            assert found == (plans.length[row], plans.num_tiles[row])
            whole, fewer = (
                encoded_length(config, encoder, index, row, variant, tiles, int(all_turns[row]))[0]
                for tiles in (stage.max_num_tiles, limit)
            )
            assert tokens.lost_tiles[row] == whole - fewer
            assert tokens.lost_turns[row] == fewer - found[0]
            fits = found[0] <= stage.sequence_length and found[1] <= budget
            assert fits == plans.fits[row]
            if plans.cut_turns[row]:
                assert limit == 1 or not tiles_take_room
                more = encoded_length(config, encoder, index, row, variant, limit, turns + 1)
            elif plans.shortened_tiles[row]:
                more = encoded_length(config, encoder, index, row, variant, limit + 1, turns)
                assert tiles_take_room or more[1] > budget
            else:
                continue
            # One more would have been too many.
            assert more[0] > stage.sequence_length or more[1] > budget


def test_whole_turns_are_cut_from_the_end_and_never_the_first(make_config):
    for length, cut, dropped in ((512, 0, 0), (172, 7, 0), (111, 10, 0), (91, 0, 10)):
        config = with_stage(make_config(), sequence_length=length)
        index = {index.source: index for index in open_indexes(config)}["pairs"]
        _, plans = plan_all(config, index)
        assert (plans.cut_turns.sum(), (~plans.fits).sum()) == (cut, dropped)
        assert set(plans.num_turns[plans.cut_turns | ~plans.fits]) <= {1}


def test_a_source_may_have_fewer_tiles_than_the_stage(make_config):
    config = make_config()
    index = open_indexes(config)[1]
    assert index.source == "single"
    rows = np.arange(40)
    source = PlannedSource(config, SourceConfig(max_num_tiles=2), index)
    plans = source.plan(Draws.of_source(0, rows, np.zeros_like(rows)))
    assert plans.num_tiles.max() == 3
    assert not plans.shortened_tiles.any()


@pytest.fixture
def open_wordings(tmp_path: Path, make_config) -> RunConfig:
    """Captions and questions with several answers, one a hundred times likelier than the other."""
    image = draw_image(60, 40)
    samples = [
        {"__key__": f"k{i:03d}", "jpg": image,
         "json": b'{"question": "What?", "answers": ["yes", "no, not at all"], '
                 b'"answer_weights": [100, 1]}'}
        for i in range(200)
    ]  # fmt: skip
    write_shard(tmp_path / "data" / "train" / "vqa" / "a.tar", samples)
    captions = [
        {"__key__": f"c{i:03d}", "jpg": image, "txt": b"A picture of some kind."}
        for i in range(200)
    ]
    write_shard(tmp_path / "data" / "train" / "captions" / "a.tar", captions)
    write_shard(
        tmp_path / "data" / "train" / "fixed" / "a.tar",
        [{"__key__": "f", "json": as_json(("user", "Hi"), ("assistant", "Ho"))}],
    )
    return make_config(f"data.root={tmp_path / 'data'}")


def test_wordings_may_be_fewer_than_a_pool_has(open_wordings: RunConfig):
    few = changed(open_wordings, {"data.num_prompt_wordings": 2})
    captions, fixed, vqa = open_indexes(few)
    assert set(plan_all(few, captions)[1].variant) == {0, 1}
    with ShardReader() as reader:
        shard, ranges = str(captions.shard_path(0)), captions.text_ranges(0)
        sample = captions.parser.parse(
            {name: reader.read(shard, where) for name, where in ranges.items()}, 1
        )
    asked = [question for question, *_ in sample.variants]
    assert asked == [f"<image>\n{text}" for text in load_prompt_pools(None)["caption"][:2]]
    # What is written out, and a sample's own answers, are as they were.
    assert set(plan_all(few, fixed)[1].variant) == {0}
    assert set(plan_all(few, vqa)[1].variant) == {0, 1}
    with pytest.raises(DataError, match="prompt pools was"):
        check_same(
            data_fingerprint(few, [captions, fixed, vqa]),
            data_fingerprint(open_wordings, open_indexes(open_wordings)),
        )


def test_a_choice_is_a_function_of_seed_key_and_epoch(open_wordings: RunConfig):
    config = open_wordings
    captions, fixed, vqa = open_indexes(config)
    _, first = plan_all(config, captions)
    # Every prompt of the pool has its turn, evenly.
    counts = Counter(first.variant.tolist())
    assert set(counts) == set(range(7))
    assert min(counts.values()) > 10
    # Rows planned alone, in another order or again are planned alike; another pass is not.
    source = PlannedSource(config, SourceConfig(), captions)
    for rows in (np.array([5]), np.arange(len(captions))[::-1].copy()):
        plans = source.plan(Draws.of_source(0, rows, np.zeros_like(rows)))
        assert np.array_equal(plans.variant, first.variant[rows])
        assert np.array_equal(plans.length, first.length[rows])
    assert not np.array_equal(plan_all(config, captions, epoch=1)[1].variant, first.variant)
    other = plan_all(changed(config, {"train.seed": 5}), captions)[1]
    assert not np.array_equal(other.variant, first.variant)
    # Answers by their weights.
    answers = plan_all(config, vqa)[1].variant
    assert 0 <= (answers == 1).sum() < 12
    assert set(plan_all(config, fixed)[1].variant) == {0}


def test_lengths_of_every_choice_are_exact(open_wordings: RunConfig):
    config = open_wordings
    encoder = SampleEncoder.from_config(config)
    for index in open_indexes(config, encoder):
        for epoch in range(3):
            _, plans = plan_all(config, index, epoch)
            for row in range(0, len(index), 17):
                found = encoded_length(config, encoder, index, row, int(plans.variant[row]), 6, 1)
                assert found == (plans.length[row], plans.num_tiles[row])


def test_masks_and_weights_are_planned_counted_and_trained(make_config, tmp_path: Path):
    """Loss weights multiply; a turn of weight 0 has no share; what would train nothing is out."""
    turns = [("user", "What?"), ("assistant", "This."), ("user", "And?"), ("assistant", "That.")]
    plain = json.loads(as_json(*turns))
    masked, late = (json.loads(as_json(*turns, loss_weight=0.5)) for _ in range(2))
    masked["messages"][3]["weight"] = 0
    late["messages"][1]["weight"] = 0
    late["messages"][2]["content"] = "And? " * 200
    samples = [
        {"__key__": key, "json": json.dumps(value).encode()}
        for key, value in (("plain", plain), ("masked", masked), ("late", late))
    ]
    write_shard(tmp_path / "data" / "train" / "turns" / "a.tar", samples)
    config = with_stage(make_config(f"data.root={tmp_path / 'data'}"), sequence_length=200)
    (index,) = open_indexes(config)
    assert index.loss_weight.tolist() == [1, 0.5, 0.5]
    trained = [index.turn_trained[index.turn_starts[row] :][:2].tolist() for row in range(3)]
    assert trained == [trained[0], [trained[0][0], 0], [0, trained[0][1]]]
    settings = SourceConfig(loss_weight=4)
    source = PlannedSource(config, settings, index)
    rows = np.arange(3)
    plans = source.plan(Draws.of_source(0, rows, np.zeros_like(rows)))
    # The long second question is cut off, and with it all that was trained.
    assert plans.fits.tolist() == [True, True, False]
    assert plans.num_turns.tolist() == [2, 2, 1]
    assert "no turn of those that fit" in source.too_long(2, int(plans.length[2]), 0)
    tokens = source.account(plans)
    assert tokens.num_trained.tolist() == [sum(trained[0]), trained[0][0], 0]

    encoder = SampleEncoder.from_config(config)
    reader = MicroBatchReader(config, encoder, {index.source: index.parser})
    requests = [sample_request(source, draw) for draw in plans if draw.fits]
    assert [request.loss_weight for request in requests] == [4, 2]
    batch, skipped, _ = reader[[requests]]
    assert skipped == []
    micro_batch = unpack(batch)
    end = [encoder.tokenizer.end_id, *encoder.tokenizer.encode("\n")]
    first, second = ([*encoder.tokenizer.encode(text), *end] for text in ("This.", "That."))
    is_trained = micro_batch.labels != IGNORED_LABEL
    assert micro_batch.labels[is_trained].tolist() == [*first, *second, *first]
    assert micro_batch.loss_weights is not None
    weights = [4.0] * len(first + second) + [2.0] * len(first)
    assert micro_batch.loss_weights[is_trained].tolist() == weights
    assert micro_batch.loss_weights[~is_trained].sum() == 0


def test_frames_of_a_video_are_planned_and_read(make_config, tmp_path: Path):
    samples = [
        {"__key__": f"v{number}", "mp4": make_video(number),
         "json": as_json(("user", "<video>\nWhat?"), ("assistant", "It grows brighter."))}
        for number in (3, 20)
    ] + [{"__key__": "c", "webm": make_video(5, "webm"), "txt": b"A square."},
         {"__key__": "bad", "mp4": b"no video", "txt": b"A square."}]  # fmt: skip
    write_shard(tmp_path / "data" / "train" / "videos" / "a.tar", samples)
    config = make_config(f"data.root={tmp_path / 'data'}", "data.num_video_frames=4")
    (index,) = open_indexes(config)
    assert [(r.key, r.reason) for r in index.rejected] == [("bad", "video")]
    assert index.num_frames.tolist() == [3, 4, 4]
    source, plans = plan_all(config, index)
    assert plans.num_tiles.tolist() == [3, 4, 4]
    reader = MicroBatchReader(
        config, SampleEncoder.from_config(config), {index.source: index.parser}
    )
    for draw in plans:
        # Refused there unless tokens and tiles are those planned.
        encoded, tiles = reader.read_sample(sample_request(source, draw))
        assert (len(encoded.tokens), len(tiles)) == (draw.length, draw.num_tiles)
