"""What a router asks of Transformer Engine where there is none."""

from __future__ import annotations

import importlib.util

from nvlm.megatron.router_gating import define_missing_product


def test_megatron_core_leaves_the_name_undefined(parallel):
    from megatron.core.transformer.moe import moe_utils

    spec = importlib.util.spec_from_file_location("fresh_moe_utils", moe_utils.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert not hasattr(fresh, "te_general_gemm"), "the correction is not needed any more"
    define_missing_product()
    assert moe_utils.te_general_gemm is None
