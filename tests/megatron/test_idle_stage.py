"""Why an empty optimizer state is left out: plain checkpoints find that the ranks differ."""

from __future__ import annotations

import torch

from nvlm.megatron.idle_stage import without_empty_state


def test_empty_state_differs_from_what_other_ranks_keep(parallel):
    from megatron.core.dist_checkpointing.dict_utils import diff
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess

    def kept(state: dict) -> dict:
        """What a checkpoint keeps of `state` beside sharded tensors; equal on all ranks."""
        _, common = save_preprocess({"optimizer": state})
        return common

    tensor = ShardedTensor.from_rank_offsets("optimizer.state.param.w", torch.ones(2))
    groups = {"optimizer": {"param_groups": [{"lr": 1.0}]}}
    busy = {**groups, "param_state": {0: {"param": tensor}}}
    idle = {**groups, "param_state": {}}
    assert any(diff(kept(busy), kept(idle)))
    assert not any(diff(kept(without_empty_state(busy)), kept(without_empty_state(idle))))
    assert without_empty_state(busy) == busy
