"""How a row is shared out over context-parallel ranks: by Megatron-core's rule, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import small_model
from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank

from nvlm.batch import IGNORED_LABEL
from nvlm.megatron.packed_rotary import positions_in_documents
from nvlm.parallel.context import own_positions, padded_starts, row_part

DOCUMENTS = [23, 1, 40, 17]
NUM_TILES = 3


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_have_the_chunks_that_megatron_core_rotates(size):
    starts = padded_starts([0, *torch.tensor(DOCUMENTS).cumsum(0).tolist()], size)
    assert all((end - start) % (2 * size) == 0 for start, end in pairwise(starts))
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    for rank in range(size):
        theirs, theirs_in_row = [], []
        for start, end in pairwise(starts):
            own = torch.empty((end - start) // size)
            chunks = _get_thd_freqs_on_this_cp_rank(rank, size, own, torch.arange(end - start))
            theirs.append(chunks)
            theirs_in_row.append(chunks + start)
        mine = torch.from_numpy(own_positions(starts, rank, size))
        assert torch.equal(mine, torch.cat(theirs_in_row))
        positions = positions_in_documents(cu_seqlens, len(mine), rank, size)
        assert torch.equal(positions.long(), torch.cat(theirs))


@pytest.mark.parametrize("size", [2, 4])
def test_parts_make_up_the_row_and_its_images(size):
    config = small_model.small_config()
    batch = small_model.batch(config, 1, [60, *DOCUMENTS], NUM_TILES)
    length = 8 * size * -(-batch.tokens.shape[1] // (4 * size))
    parts = [row_part(batch, NUM_TILES, length, rank, size) for rank in range(size)]
    rows = [part_of(batch, part) for part in parts]
    assert {len(row.tokens[0]) for row in rows} == {length // size}
    # Each token is on one rank, with its label; padding is trained nowhere.
    sources = torch.cat([part.sources[~part.is_padding] for part in parts])
    assert sorted(sources.tolist()) == list(range(batch.tokens.shape[1]))
    labels = torch.cat([row.labels[0] for row in rows])
    padding = torch.cat([part.is_padding for part in parts])
    assert torch.equal(labels[~padding], batch.labels[0][sources])
    assert set(labels[padding].tolist()) == {IGNORED_LABEL}
    # In the order of the row, documents follow each other with their padding behind them.
    in_order = torch.cat([row.tokens[0] for row in rows])[parts[0].row_order]
    for start, own_start, own_end in zip(
        rows[0].document_starts, *zip(*pairwise(batch.document_starts))
    ):
        document = batch.tokens[0, own_start:own_end]
        assert torch.equal(in_order[start : start + len(document)], document)


def part_of(batch, part):
    return replace(batch, part=part).on_this_rank()


@pytest.mark.parametrize("num_tiles", [1, 2, 3, 5])
def test_image_tokens_come_from_the_rank_that_encodes_them(num_tiles):
    size, config = 2, small_model.small_config()
    batch = small_model.batch(config, 1, [200, 30], num_tiles)
    parts = [row_part(batch, num_tiles, 240, rank, size) for rank in range(size)]
    num_tokens = len(batch.image_positions)
    shares = torch.arange(num_tokens).view(num_tiles, -1).split(parts[0].num_tiles)
    most = max(parts[0].num_tiles)
    gathered = torch.full((size, most, num_tokens // num_tiles), -1)
    for rank, share in enumerate(shares):
        gathered[rank, : len(share)] = share
    found = torch.full((batch.tokens.shape[1],), -1)
    for part in parts:
        found[part.sources[part.image_positions]] = gathered.flatten()[part.image_rows]
    assert torch.equal(found[batch.image_positions], torch.arange(num_tokens))
    assert (found >= 0).sum() == num_tokens
