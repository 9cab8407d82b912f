"""Blends: shares held within one draw at any prefix, at every level; used-up sources; exactness."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from nvlm.config.schema import DataConfig
from nvlm.data.order.blend import Blend
from nvlm.data.shards.sources import flatten_blend


def make_blend(blend: dict | None, sizes: dict[str, int]) -> Blend:
    config = DataConfig.model_validate({"root": "x", "blend": blend})
    leaves = flatten_blend(config.blend or {})
    epochs = [leaves[name][1].max_epochs if name in leaves else None for name in sizes]
    return Blend(config, list(sizes), list(sizes.values()), epochs)


BLENDS = [
    {"a": 5, "b": 3, "c": 2},
    {"a": 1, "b": 0.01},
    {"a": 1, "b": 1},
    {"a": 0.1, "b": 0.7, "c": 0.1, "d": 0.1},
    {f"s{number}": 1.37 ** (number % 7) for number in range(20)},
    {"a": 1e-9, "b": 1e9},
]


@pytest.mark.parametrize("weights", BLENDS)
def test_shares_hold_at_every_prefix(weights: dict[str, float]):
    blend = make_blend(weights, dict.fromkeys(weights, 10))
    shares = [weight / sum(weights.values()) for weight in weights.values()]
    counts = [0] * len(weights)
    for number in range(1, 4001):
        counts[blend.draw()] += 1
        for share, count in zip(shares, counts, strict=True):
            assert abs(count - share * number) < 1 + 1e-9


def test_without_a_blend_sources_count_by_their_samples():
    blend = make_blend(None, {"a": 30, "b": 10, "c": 60})
    counts = Counter(blend.draw() for _ in range(100))
    assert counts == {0: 30, 1: 10, 2: 60}


def test_nested_shares_hold_at_every_level():
    nested = {"caption": {"weight": 5, "blend": {"x": 1, "y": 0.1}}, "text": {"weight": 1}}
    nested["more"] = {"weight": 5, "blend": {"z": 2, "inner": {"weight": 1, "blend": {"u": 1}}}}
    names = ["text", "u", "x", "y", "z"]
    blend = make_blend(nested, dict.fromkeys(names, 10))
    counts: Counter[str] = Counter()
    for number in range(1, 4001):
        counts[names[blend.draw()]] += 1
        caption, more = counts["x"] + counts["y"], counts["z"] + counts["u"]
        for count, share in ((caption, 5 / 11), (more, 5 / 11), (counts["text"], 1 / 11)):
            assert abs(count - share * number) < 1 + 1e-9
        assert abs(counts["y"] - caption / 11) < 1 + 1e-9
        assert abs(counts["u"] - more / 3) < 1 + 1e-9


def test_used_up_sources_leave_their_share_to_their_siblings():
    nested = {
        "a": 1,
        "b": {"weight": 1, "max_epochs": 2},
        "c": {"weight": 2, "blend": {"d": {"max_epochs": 1}, "e": 1}},
    }
    blend = make_blend(nested, dict.fromkeys("abde", 10))
    sequence = [blend.draw() for _ in range(600)]
    first = Counter(sequence[:40])
    assert first == {0: 10, 1: 10, 2: 10, 3: 10}
    # From here `e` has all of `c`'s half; then, without `b`, two thirds.
    assert Counter(sequence[40:80]) == {0: 10, 1: 10, 3: 20}
    assert Counter(sequence[80:]) == {0: 173, 3: 347} or Counter(sequence[80:]) == {0: 174, 3: 346}
    # The middle of a run is found without drawing up to it.
    placed = make_blend(nested, dict.fromkeys("abde", 10))
    placed.place(300)
    expected = Counter(sequence[:300])
    assert all(abs(n - expected[number]) <= 1 for number, n in enumerate(placed.num_drawn))
    assert {placed.draw() for _ in range(20)} == {0, 3}


@pytest.mark.parametrize("seed", range(6))
def test_shares_hold_at_every_prefix_while_sources_are_used_up(seed: int):
    """Every blend, at every level, keeps its sources' counts within one of their shares of its own
    draws, counted from where one of them was last used up."""
    random = np.random.default_rng(seed)

    def entry(depth: int, name: str) -> dict:
        own: dict = {"weight": float(random.uniform(0.1, 3))}
        if depth and random.random() < 0.5:
            return own | {"blend": {f"{name}{i}": entry(depth - 1, f"{name}{i}") for i in range(3)}}
        return own | (
            {"max_epochs": float(random.uniform(0.2, 3))} if random.random() < 0.6 else {}
        )

    blend = {f"s{i}": entry(2, f"s{i}") for i in range(4)}
    room = {
        name: max(1, round(settings.max_epochs * 40)) if settings.max_epochs else math.inf
        for name, (_, settings) in flatten_blend(DataConfig(root="x", blend=blend).blend).items()
    }
    paths = dict(_paths(blend))
    active = {path[:i] for path in paths.values() for i in range(1, len(path) + 1)}
    counts: Counter[tuple] = Counter()
    drawn = make_blend(blend, dict.fromkeys(paths, 40))
    for _ in range(3000):
        number = drawn.draw()
        if number is None:
            assert not active
            break
        name = list(paths)[number]
        path = paths[name]
        room[name] -= 1
        for level in range(1, len(path) + 1):
            counts[path[:level]] += 1
        for level in range(len(path)):
            siblings = _siblings(blend, path[:level], active)
            num_draws = sum(counts[s] for s in siblings)
            total = sum(siblings.values())
            for sibling, weight in siblings.items():
                assert abs(counts[sibling] - num_draws * weight / total) < 1 + 1e-9
        level = len(path)
        while room[name] == 0 and level and not _siblings(blend, path[:level], active):
            active.remove(path[:level])
            level -= 1
            for sibling in _siblings(blend, path[:level], active):
                counts[sibling] = 0
    assert len(active) < len({p[:i] for p in paths.values() for i in range(1, len(p) + 1)})


def _paths(blend: dict, above: tuple = ()) -> Iterator[tuple[str, tuple]]:
    """(source, names from the top to it)"""
    for name, own in blend.items():
        if "blend" in own:
            yield from _paths(own["blend"], (*above, name))
        else:
            yield name, (*above, name)


def _siblings(blend: dict, path: tuple, active: set[tuple]) -> dict[tuple, float]:
    """Weights of what is not used up in the blend at `path`; {} if there is a source."""
    for name in path:
        blend = blend[name].get("blend", {})
    return {(*path, n): own["weight"] for n, own in blend.items() if (*path, n) in active}


def test_all_used_up():
    blend = make_blend(
        {"a": {"max_epochs": 0.5}, "b": {"blend": {"c": {"max_epochs": 1}}}}, {"a": 5, "c": 3}
    )
    sequence = [blend.draw() for _ in range(7)]
    assert Counter(sequence) == {0: 2, 1: 3, None: 2}
    assert sequence[5:] == [None, None]


def test_state_restores_the_sequence():
    weights = {"a": 3, "b": {"weight": 2, "blend": {"c": 1, "d": {"weight": 2, "max_epochs": 4}}}}
    sizes = {"a": 10, "c": 10, "d": 10}
    blend = make_blend(weights, sizes)
    whole = [blend.draw() for _ in range(200)]
    blend = make_blend(weights, sizes)
    for taken in range(150):
        resumed = make_blend(weights, sizes)
        resumed.load_state(json.loads(json.dumps(blend.state())))
        assert [resumed.draw() for _ in range(20)] == whole[taken : taken + 20]
        blend.draw()
