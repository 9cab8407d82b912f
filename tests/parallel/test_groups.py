"""Process groups: their limit of time, and when they are left."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import small_model

from nvlm.parallel.groups import COLLECTIVE_TIMEOUT, initialize, leaving_groups, shut_down


def test_every_group_has_the_same_limit():
    parallel = initialize(small_model.small_config(), world_size=1)
    try:
        of_megatron = {id(group) for group in vars(parallel.groups).values() if group is not None}
        every = dist.distributed_c10d._world.pg_map
        assert of_megatron <= {id(group) for group in every}
        assert len(every) > 10
        for group in every:
            options = group._get_backend(torch.device("cpu")).options
            assert options._timeout == COLLECTIVE_TIMEOUT, group.group_desc
    finally:
        shut_down()


def test_they_are_left_after_success_only():
    """On a GPU, leaving waits for communicators that the others of the run never let go."""
    for world_size in (1, 2):
        dist.init_process_group("fake", rank=0, world_size=world_size)
        with pytest.raises(KeyError), leaving_groups():
            raise KeyError
        assert dist.is_initialized() == (world_size == 2)
    with leaving_groups():
        pass
    assert not dist.is_initialized()
