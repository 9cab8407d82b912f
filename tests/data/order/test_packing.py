"""Packing: both budgets hold, nothing is lost, and the row is what the samples say."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm.batch import IGNORED_LABEL, check_micro_batch
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.order.packing import choose_carried, pack_samples
from nvlm.data.text.encode import EncodedSample
from nvlm.sizes.visual import VisualLayout

VISUAL = VisualLayout("1d", True, 6, image_size=4, num_tokens_per_tile=2)


@pytest.mark.parametrize("max_tiles", [None, 15])
def test_budgets_hold_and_every_sample_is_packed_once(max_tiles: int | None):
    random = np.random.default_rng(3)
    tiles = random.choice([0, 1, 3, 5, 7], 500)
    lengths = np.minimum(261 * tiles + random.integers(20, 400, 500), 4096)
    packs = pack_samples(lengths.tolist(), tiles.tolist(), 4096, max_tiles)
    assert sorted(sample for pack in packs for sample in pack) == list(range(500))
    assert max(lengths[pack].sum() for pack in packs) <= 4096
    if max_tiles is not None:
        assert max(tiles[pack].sum() for pack in packs) <= max_tiles


def test_best_fit():
    # 6 opens a pack, 5 another; 4 fits best beside 6, 3 beside 5, and 2 beside those two.
    assert pack_samples([5, 6, 3, 4, 2], [0] * 5, 10, None) == [[1, 3], [0, 2, 4]]
    # With one tile each and two per pack, 2 must open a third.
    assert pack_samples([5, 6, 3, 4, 2], [1] * 5, 10, 2) == [[1, 3], [0, 2], [4]]


def test_emptiest_packs_are_carried_until_they_are_old():
    packs, lengths = [[0, 1], [2], [3], [4]], [6, 4, 7, 3, 9]
    assert choose_carried(packs, lengths, [0] * 5, 10, 16) == {1, 2, 3}
    # At most a quarter of the window, the emptiest first; never all; no sample forever.
    assert choose_carried(packs, lengths, [0] * 5, 10, 8) == {1, 2}
    assert choose_carried(packs[1:], lengths, [0] * 5, 10, 16) == {1, 0}
    assert choose_carried(packs, lengths, [0, 0, 0, 16, 0], 10, 16) == {1, 3}


@pytest.mark.parametrize(
    ("max_tokens", "max_tiles", "most"), [(4096, 15, 0.01), (16384, 58, 0.001)]
)
def test_padding_of_a_usual_mixture(max_tokens: int, max_tiles: int, most: float):
    """Windows of 512 samples of 0 to 7 tiles: the share of tokens that stays padding."""
    random = np.random.default_rng(0)
    num_samples, window = 30_000, 512
    tiles = random.choice([1, 3, 4, 5, 7], num_samples, p=[0.10, 0.15, 0.05, 0.15, 0.55])
    tiles[random.random(num_samples) < 0.15] = 0
    text = np.maximum(1, random.lognormal(np.log(120), 1, num_samples)).astype(np.int64)
    lengths = np.minimum(261 * tiles + text, max_tokens)
    num_packs = num_tokens = 0
    carried: list[tuple[int, int]] = []  # (sample, age)
    for start in range(0, num_samples, window):
        new = range(start, min(num_samples, start + window))
        waiting = carried + [(sample, 0) for sample in new]
        own = [int(lengths[sample]) for sample, _ in waiting]
        packs = pack_samples(own, [int(tiles[s]) for s, _ in waiting], max_tokens, max_tiles)
        chosen = choose_carried(packs, own, [age for _, age in waiting], max_tokens, window)
        carried = [(waiting[i][0], waiting[i][1] + 1) for pack in chosen for i in packs[pack]]
        num_packs += len(packs) - len(chosen)
        num_tokens += sum(own) - sum(int(lengths[sample]) for sample, _ in carried)
    padding = 1 - num_tokens / (num_packs * max_tokens)
    # Measured 0.56 % and 0.05 %.
    assert padding < most


def make_encoded(first_token: int, length: int, num_image_tokens: int = 0) -> EncodedSample:
    tokens = np.arange(first_token, first_token + length)
    image_mask = np.arange(length) < num_image_tokens
    return EncodedSample(tokens, np.where(image_mask, IGNORED_LABEL, tokens + 1000), image_mask)


def make_tiles(*values: int) -> np.ndarray:
    tiles = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(tiles, (len(values), 3, 4, 4))


def test_row_of_two_sequences():
    sequences = [
        [
            PackedSample("a", make_encoded(10, 3, num_image_tokens=2), make_tiles(7)),
            PackedSample("b", make_encoded(20, 5, num_image_tokens=4), make_tiles(8, 9)),
        ],
        [PackedSample("c", make_encoded(30, 4), make_tiles())],
    ]
    batch = build_micro_batch(sequences, sequence_length=10, image_size=4, pad_id=1)
    check_micro_batch(batch, VISUAL)
    none = IGNORED_LABEL
    assert batch.tokens.tolist() == [
        [10, 11, 12, 20, 21, 22, 23, 24, 1, 1, 30, 31, 32, 33, 1, 1, 1, 1, 1, 1]
    ]
    assert batch.labels.tolist() == [
        [none, none, 1012, none, none, none, none, 1024, none, none, 1030, 1031, 1032, 1033]
        + [none] * 6
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, *range(6)]]
    assert batch.cu_seqlens.tolist() == [0, 3, 8, 10, 14, 20]
    assert batch.image_mask[0].nonzero().flatten().tolist() == [0, 1, 3, 4, 5, 6]
    assert batch.tiles[:, 0, 0, 0].tolist() == [7, 8, 9]
    assert batch.sample_keys == ["a", "b", "c"]
    assert batch.num_real_tokens == 12


def test_full_sequence_has_no_padding_document():
    sample = PackedSample("a", make_encoded(5, 6), make_tiles())
    batch = build_micro_batch([[sample]], 6, 4, pad_id=1)
    assert batch.cu_seqlens.tolist() == [0, 6]


def test_empty_sequence_is_one_padding_document():
    batch = build_micro_batch([[]], 6, 4, pad_id=1)
    check_micro_batch(batch, VISUAL)
    assert batch.cu_seqlens.tolist() == [0, 6]
    assert batch.tiles.shape == (0, 3, 4, 4)
    assert batch.loss_mask().sum() == 0


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        # a: 4 trained tokens, source weight 1; b: 1 trained token, source weight 0.5.
        ("token", [1, 1, 1, 1, 0, 0, 0.5, 0]),
        ("sample", [0.25, 0.25, 0.25, 0.25, 0, 0, 0.5, 0]),
        ("sqrt_length", [0.5, 0.5, 0.5, 0.5, 0, 0, 0.5, 0]),
    ],
)
def test_loss_weights(weighting: str, expected: list[float]):
    samples = [
        PackedSample("a", make_encoded(10, 4), make_tiles()),
        PackedSample("b", make_encoded(20, 3, num_image_tokens=2), make_tiles(1), loss_weight=0.5),
    ]
    batch = build_micro_batch([samples], 8, 4, pad_id=1, loss_weighting=weighting)
    assert batch.weights().tolist() == [[*expected]]
