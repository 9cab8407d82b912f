"""Why groups of an earlier layout are destroyed: Megatron-core only forgets them."""

from __future__ import annotations

import torch.distributed as dist
from helpers import small_model

from nvlm.parallel.groups import initialize


def num_groups() -> int:
    return len(dist.distributed_c10d._world.pg_map)


def test_groups_stay_where_megatron_core_forgets_them(parallel):
    from megatron.core import parallel_state

    from nvlm.megatron.left_groups import leave_model_parallel

    config = small_model.small_config()
    initialize(config)
    before = num_groups()
    assert before > 1
    initialize(config)
    assert num_groups() == before

    parallel_state.destroy_model_parallel()
    assert num_groups() == before
    initialize(config)
    assert num_groups() > before

    leave_model_parallel()
    assert not parallel_state.model_parallel_is_initialized()
    leave_model_parallel()
    initialize(config)
