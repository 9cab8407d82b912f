"""Scaling factors of 8-bit training in checkpoints.

What is wrong: Transformer Engine keeps them in `_extra_state`, pickled, so that reading it can run
whatever it names; and Megatron-core 0.16.1 stores one for each tensor-parallel rank.
What is done: `_extra_state` stays out (extra_state.py). Of delayed scaling, the only recipe that
has a state, factors and the maxima that they come from are tensors of their own, by the number of
their layer in the whole model. All tensor and data ranks of a stage have the same, since each
maximum is taken over all of them, so one is saved and any layout reads it.
When the pin moves: `init_fp8_metadata` and `fp8_meta` of Transformer Engine's module/base.py, and
whether `get_amax_reduction_group` still is tensor x data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.transformer.transformer_block import TransformerBlock

_MARK = ".fp8."


def begin_scaling(block: TransformerBlock) -> None:
    """Give the linear layers of `block` their factors before a first pass, to be read into."""
    from megatron.core.fp8_utils import get_fp8_context
    from transformer_engine.pytorch.fp8 import (  # pyright: ignore[reportMissingImports]
        FP8GlobalStateManager,
    )

    # What a training before this one in the process has left would be reduced with ours.
    FP8GlobalStateManager.reset()
    with get_fp8_context(block.config):
        for _, module in _linear_layers(block):
            module.init_fp8_metadata(num_gemms=1)


def scaling_tensors(block: TransformerBlock, prefix: str, copy: int) -> Iterator[ShardedTensor]:
    """Factors and maxima of the block's layers; their `data` is what training uses.

    Args:
        prefix: of the block's name in the model.
        copy: 0 on the rank whose values are saved.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    for name, module in _linear_layers(block):
        for direction in ("fwd", "bwd"):
            state = module.fp8_meta[f"scaling_{direction}"]
            for what in ("scale", "amax_history"):
                yield ShardedTensor.from_rank_offsets(
                    f"{prefix}{name}{_MARK}{what}_{direction}",
                    getattr(state, what),
                    replica_id=(0, copy, 0),
                )


def is_scaling(key: str) -> bool:
    """Whether a checkpoint's key is one of `scaling_tensors`."""
    return _MARK in key


def _linear_layers(block: TransformerBlock) -> Iterator[tuple[str, Any]]:
    """(`layers.NUMBER.NAME`, module), with the layer's number in the whole model."""
    for layer in block.layers:
        number: Any = layer.layer_number
        for name, module in layer.named_modules():
            # Its attention has factors too, which are not used: it attends in 16 bits.
            if hasattr(module, "init_fp8_metadata") and hasattr(module, "weight"):
                yield f"layers.{number - 1}.{name}", module
