"""Statistics of a blend: exact where all steps are planned, close where stretches stand for all."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.loading import build_loader
from helpers.shard_writing import as_json, draw_image, write_shard
from typer.testing import CliRunner

from nvlm.batch import IGNORED_LABEL
from nvlm.cli import app
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading.loader import sample_request
from nvlm.data.order.planner import Planner
from nvlm.views import stats as stats_module
from nvlm.views.stats import blend_stats


def test_equals_what_the_order_holds(make_config):
    config = make_config()
    stats = blend_stats(config, 30)
    planner = Planner(config, open_indexes(config))
    samples, tiles, tokens = Counter(), Counter(), Counter()
    for _ in range(30):
        for pack in planner.next_step():
            for draw in pack.draws:
                name = planner.sources[draw.source].index.source
                samples[name] += 1
                tiles[name] += draw.num_tiles
                tokens[name] += draw.length
    assert (stats.steps, stats.sampled_steps, stats.packs) == (30, 30, 120)
    assert stats.padding == pytest.approx(1 - sum(tokens.values()) / (120 * 512))
    assert stats.sources.keys() == samples.keys()
    for name, source in stats.sources.items():
        assert (source.samples, source.tiles) == (samples[name], tiles[name])
        assert source.image_tokens == 16 * tiles[name]
        assert source.image_tokens + source.text_tokens == tokens[name]
    assert stats.sources["pairs"].images == 2 * samples["pairs"]
    assert stats.sources["text"].images == 0
    assert stats.sources["single"].passes == samples["single"] / 40
    assert all(1 <= ratio < 1.1 for ratio in stats.imbalance.values())
    assert list(stats.imbalance) == [2, 4]


@pytest.fixture
def all_kinds(tmp_path: Path) -> Path:
    """Documents, conversations and captions in several wordings; some too long for 170 tokens."""
    pictures = [draw_image(120 * (i % 3 + 1), 110, seed=i) for i in range(4)]
    turns = [("user", "<image>\nWhat?"), ("assistant", "A drawing."), ("user", "Now <image>?")]
    samples = {"documents": [], "conversations": [], "captions": []}
    for i in range(12):
        images = {"0.png": pictures[i % 4], "1.png": pictures[(i + 1) % 4]}
        talk = as_json(*turns, ("assistant", "Another one. " * (i + 1)))
        parts = [{"image": 0}, {"text": "A page.\n\n"}, {"image": 1}, {"text": "7 " * 8 * i + "x"}]
        # One begins with text, whose first token nothing asks for.
        document = {"parts": [{"text": "First."}, *parts] if i % 2 else parts}
        names = {"__key__": f"k{i:02d}"}
        samples["conversations"].append(names | images | {"json": talk})
        samples["documents"].append(names | images | {"json": json.dumps(document).encode()})
        captions = {"caption": ["A drawing.", "Lines and a colour, " * (i + 1)]}
        caption = {"json": json.dumps(captions).encode(), "png": pictures[i % 4]}
        samples["captions"].append(names | caption)
    long = as_json(("user", "What? " * 400), ("assistant", "That."))
    samples["conversations"].append({"__key__": "long", "json": long})
    for name, own in samples.items():
        write_shard(tmp_path / "kinds" / "train" / name / "a.tar", own)
    return tmp_path / "kinds"


@pytest.mark.parametrize("weighting", ["token", "sample", "sqrt_length"])
def test_trained_tokens_and_loss_are_those_of_the_batches(make_config, all_kinds, weighting):
    config = make_config(
        f"data.root={all_kinds}",
        "stage.sequence_length=170",
        f"train.loss_weighting={weighting}",
        "data.blend={documents: {loss_weight: 0.5}, conversations: 1, captions: {loss_weight: 3}}",
    )
    stats = blend_stats(config, 12)
    planner = Planner(config, open_indexes(config))
    trained, weights, images = Counter(), Counter(), Counter()
    for _ in range(12):
        for draw in (draw for pack in planner.next_step() for draw in pack.draws):
            source = planner.sources[draw.source]
            images[source.index.source] += len(sample_request(source, draw).grids)
    for step in itertools.islice(build_loader(config, open_indexes(config), 0, 1), 12):
        assert {s.reason for s in step.skipped} <= {"too_long"}
        for batch in step.micro_batches:
            starts = batch.cu_seqlens.tolist()
            for key, start, stop in zip(batch.sample_keys, starts[:-1], starts[1:], strict=False):
                name = key.partition("/")[0]
                trained[name] += int((batch.labels[0, start:stop] != IGNORED_LABEL).sum())
                weights[name] += float(batch.weights()[0, start:stop].sum())
    for name, source in stats.sources.items():
        assert source.trained_tokens == trained[name] > 0
        assert source.loss_share == pytest.approx(weights[name] / weights.total())
        # Images of turns that are cut are not counted.
        assert source.images == images[name]
    assert stats.sources["conversations"].cut_turns > 0
    assert stats.sources["documents"].cut_turns > 0


def test_estimate_of_many_steps(make_config, monkeypatch):
    config = make_config("data.blend={single: 2, pairs: {weight: 1, max_epochs: 3}, text: 1}")
    exact = blend_stats(config, 800)
    monkeypatch.setattr(stats_module, "_MAX_SAMPLES", 800)
    estimate = blend_stats(config, 800)
    assert exact.sampled_steps == exact.steps == estimate.steps == 800
    assert estimate.sampled_steps < 400
    assert estimate.padding == pytest.approx(exact.padding, abs=0.02)
    # Used up after three passes, far from the end.
    assert exact.sources["pairs"].samples == 30
    for name, source in estimate.sources.items():
        assert source.samples == pytest.approx(exact.sources[name].samples, rel=0.1)
        assert source.text_tokens == pytest.approx(exact.sources[name].text_tokens, rel=0.15)


def test_data_that_end(make_config):
    config = make_config("data.blend={text: {max_epochs: 2}}")
    stats = blend_stats(config, 1000)
    assert stats.sources["text"].samples == 30 and stats.sources["text"].passes == 2
    assert stats.steps == stats.sampled_steps < 1000


def test_command(make_config, tmp_path):
    from nvlm.config import save_config

    config = make_config()
    save_config(config, tmp_path / "run.yaml")
    arguments = ["data", "stats", str(tmp_path / "run.yaml"), "--steps", "5"]
    # In a narrow window nothing is cropped.
    printed = CliRunner().invoke(app, arguments, env={"COLUMNS": "40"})
    assert printed.exit_code == 0
    words = ("single", "pairs", "trained", "5 steps (all planned)", "padding", "none is dropped")
    for word in words:
        assert word in printed.output
    assert "…" not in printed.output
    short = CliRunner().invoke(app, [*arguments, "stage.sequence_length=170"])
    too_long = short.output.partition("Too long: samples, and the tokens they lose")[2]
    assert "single" in too_long
    assert "text" not in too_long
    parsed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert parsed["steps"] == 5 and set(parsed["sources"]) == {"single", "pairs", "text"}
