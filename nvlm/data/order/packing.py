"""Packing: which samples share a sequence, from their lengths alone.

Best-fit decreasing under two budgets, tokens and tiles, over windows of samples; the emptiest packs
of a window are repacked with the next. benchmarks/packing.py measures what stays empty.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import ArrayLike

# Packs with less room than this are not worth another window.
_FULL_SHARE = 0.98
# At most so many samples, and this share of a window's, are carried over: they are in the state.
_MAX_CARRIED = 128
_MAX_CARRIED_SHARE = 0.25
# Windows after which a sample goes out, however empty its pack is.
_MAX_AGE = 16


def pack_samples(
    lengths: ArrayLike, num_tiles: ArrayLike, max_tokens: int, max_tiles: int | None
) -> list[list[int]]:
    """Packs of sample numbers; each fits `max_tokens` tokens and `max_tiles` tiles.

    Samples go, longest first, where the fewest tokens would stay free. Equal lengths keep their
    order, so the result is a function of the arguments alone. Within a pack numbers ascend.

    Args:
        lengths: [n] tokens of each sample.
        num_tiles: [n] tiles of each sample.
    """
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    # The loop below looks at one number at a time, for which lists are several times faster.
    tokens_of: list[int] = np.asarray(lengths).tolist()
    tiles_of: list[int] = np.asarray(num_tiles).tolist()
    if max_tiles is None:
        max_tiles = sum(tiles_of)
    packs: list[list[int]] = []
    free_tiles: list[int] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), ascending
    for sample in longest_first:
        length, tiles = tokens_of[sample], tiles_of[sample]
        assert length <= max_tokens and tiles <= max_tiles, "too long samples are dropped earlier"
        place = bisect_left(room, (length, 0))
        while place < len(room) and free_tiles[room[place][1]] < tiles:
            place += 1
        if place < len(room):
            free_tokens, pack = room.pop(place)
            packs[pack].append(sample)
        else:
            free_tokens, pack = max_tokens, len(packs)
            packs.append([sample])
            free_tiles.append(max_tiles)
        free_tiles[pack] -= tiles
        insort(room, (free_tokens - length, pack))
    return [sorted(pack) for pack in packs]


def choose_carried(
    packs: list[list[int]],
    lengths: ArrayLike,
    ages: ArrayLike,
    max_tokens: int,
    window_size: int,
) -> set[int]:
    """Numbers of the packs to repack with the next window's samples: the emptiest.

    Args:
        packs: of `pack_samples`.
        lengths: [n] tokens of each sample.
        ages: [n] windows that each sample has been carried over already.
    """
    tokens_of: list[int] = np.asarray(lengths).tolist()
    age_of: list[int] = np.asarray(ages).tolist()
    most = min(_MAX_CARRIED, round(_MAX_CARRIED_SHARE * window_size))
    filled = sorted((sum(tokens_of[i] for i in pack), number) for number, pack in enumerate(packs))
    carried: set[int] = set()
    num_samples = 0
    for num_tokens, number in filled:
        if num_tokens >= _FULL_SHARE * max_tokens:
            break
        if any(age_of[i] >= _MAX_AGE for i in packs[number]):
            continue
        num_samples += len(packs[number])
        # One pack at least goes out, or a window of few long samples would be empty.
        if num_samples > most or len(carried) == len(packs) - 1:
            break
        carried.add(number)
    return carried
