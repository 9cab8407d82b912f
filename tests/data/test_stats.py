"""Statistics of a blend: exact where all steps are planned, close where stretches stand for all."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.data import stats as stats_module
from nvlm.data.index import open_indexes
from nvlm.data.order import Planner
from nvlm.data.stats import blend_stats


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
    for word in ("single", "pairs", "shortened", "5 steps (all planned)", "padding"):
        assert word in printed.output
    assert "…" not in printed.output
    parsed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert parsed["steps"] == 5 and set(parsed["sources"]) == {"single", "pairs", "text"}
