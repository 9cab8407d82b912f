"""Why each call gets a dictionary of its own: plain Megatron-core writes into it."""

from __future__ import annotations

from helpers import small_model

from nvlm.megatron.sharding_metadata import sharding_metadata


def test_process_groups_are_written_into_the_metadata(parallel):
    model = small_model.build(small_model.small_config(), parallel)
    given = sharding_metadata()
    model.sharded_state_dict(metadata=given)
    assert "dp_cp_group" in given
    assert sharding_metadata().keys() == given.keys() - {"dp_cp_group"}
