"""Which columns an index has, of which types; an index is opened with no more than this."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import DTypeLike

REJECTED_FILE = "rejected.jsonl"

# Columns with one value per sample, and per group of columns those with a list per sample.
SAMPLE_COLUMNS = {
    "key_hash": np.uint64,
    "shard": np.int32,
    "task_number": np.int32,
    "kind_number": np.uint8,
    "num_frames": np.uint16,
    "loss_weight": np.float32,
}
LIST_COLUMNS = {
    "text": {"text_member": np.uint16, "text_offset": np.int64, "text_size": np.int32},
    "image": {
        "image_offset": np.int64,
        "image_size": np.int64,  # bytes
        "image_width": np.int32,  # pixels
        "image_height": np.int32,
        "lead_single": np.int32,  # tokens; see encode.TextLengths
        "lead_multiple": np.int32,
    },
    "turn": {"turn_tokens": np.int32, "turn_images": np.int32, "turn_trained": np.int32},
    "choice": {  # variants (kinds.py), by the name that they have in index files
        "choice_tokens": np.int32,
        "choice_weight": np.float32,
        "choice_trained": np.int32,
    },
}
# For statistics: no sample is chosen or planned by these.
STATISTICS_COLUMNS = ("turn_trained", "choice_trained", "loss_weight")
# Group of columns with lists -> its members. A key is a list of bytes.
COLUMN_GROUPS = {"key": ["key_bytes"], **{name: list(m) for name, m in LIST_COLUMNS.items()}}


def column_types() -> dict[str, DTypeLike]:
    """All columns of an index."""
    types: dict[str, DTypeLike] = {"key_bytes": np.uint8, **SAMPLE_COLUMNS}
    for group in COLUMN_GROUPS:
        types |= {f"{group}_starts": np.int64, **LIST_COLUMNS.get(group, {})}
    return types


def hash_key(key: str) -> int:
    """64 bits of a sample's key, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
