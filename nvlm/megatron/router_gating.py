"""A router that computes its logits where Transformer Engine is not installed.

What is wrong: Megatron-core 0.16.1 asks in `RouterGatingLinearFunction` whether `te_general_gemm`
is None, and leaves the name undefined where Transformer Engine cannot be imported.
What is done: there it is None.
When the pin moves: the `except ImportError` at the head of
megatron/core/transformer/moe/moe_utils.py.
"""

from __future__ import annotations


def define_missing_product() -> None:
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # type: ignore[attr-defined]
