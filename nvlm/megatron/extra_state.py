"""Checkpoints that do not depend on the implementation of the layers.

What is wrong: in Megatron-core 0.16.1 linear layers have an entry `_extra_state` (scaling factors
of 8-bit training): Transformer Engine's write it, pickled, the local ones expect it.
What is done: it is left out of what is saved, and may be missing in what is loaded; the factors are
tensors of their own (fp8_state.py).
When the pin moves: whether the local layers still list the key.
"""

from __future__ import annotations

from typing import Any


def is_extra_state(key: str) -> bool:
    return key.endswith("_extra_state")


def without_extra_state(entries: dict[str, Any]) -> dict[str, Any]:
    """`entries` of a (sharded) state dict, but for those of no use here."""
    return {key: value for key, value in entries.items() if not is_extra_state(key)}


def keys_but_extra_state(found: Any, strict: bool) -> Any:
    """What torch's `load_state_dict` found of keys, without those of no use here.

    Raises:
        AssertionError: `strict`, and others are missing or unexpected.
    """
    missing = [key for key in found.missing_keys if not is_extra_state(key)]
    unexpected = [key for key in found.unexpected_keys if not is_extra_state(key)]
    assert not strict or not (missing or unexpected), f"{missing=} {unexpected=}"
    return found._replace(missing_keys=missing, unexpected_keys=unexpected)
