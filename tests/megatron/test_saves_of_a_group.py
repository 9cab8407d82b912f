"""Why saves beside training have steps of their own: plain ones speak over the default group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers.checkpoint_tensors import checkpoint_tensors
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nvlm.megatron.in_process_writes import in_process_writer
from nvlm.megatron.saves_of_a_group import save_over


class Spoken:
    """Counts collectives of the default group."""

    def __init__(self, monkeypatch):
        self.count = 0
        for name in ("all_gather_object", "barrier", "gather_object", "scatter_object_list"):
            monkeypatch.setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, function):
        def call(*arguments, **named):
            self.count += named.get("group") in (None, dist.group.WORLD)
            return function(*arguments, **named)

        return call


def state() -> dict:
    values = torch.arange(12.0).view(3, 4)
    return {"w": ShardedTensor.from_rank_offsets("w", values), "common": {"step": 3}}


def test_only_the_given_group_is_spoken_over(parallel, tmp_path, monkeypatch):
    group = dist.new_group(backend="gloo")
    spoken = Spoken(monkeypatch)
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.mkdir()
    ours.mkdir()
    content = {"form": "a"}
    writer = in_process_writer(lambda: None)
    dist_checkpointing.save(state(), str(plain), writer, content_metadata=dict(content))
    assert spoken.count, "plain saves do not speak over the default group any more"
    spoken.count = 0
    save_over(group, lambda value: [value], state(), ours, lambda: None, dict(content))
    assert not spoken.count
    assert {path.name for path in plain.iterdir()} == {path.name for path in ours.iterdir()}
    assert torch.equal(checkpoint_tensors(ours)["w"], checkpoint_tensors(plain)["w"])
    for name in ("metadata.json", "__0_0.distcp"):
        assert (ours / name).read_bytes() == (plain / name).read_bytes()
    assert dist_checkpointing.load_common_state_dict(str(ours))["common"] == {"step": 3}
    assert dist_checkpointing.load_content_metadata(str(ours)) == content


def test_tensors_that_are_not_whole_are_refused(parallel, tmp_path):
    half = ShardedTensor.from_rank_offsets("w", torch.zeros(2), (0, 0, 2))
    with pytest.raises(CheckpointingException):
        save_over(None, lambda value: [value], {"w": half}, tmp_path, lambda: None)
