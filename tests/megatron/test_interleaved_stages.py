"""Why nobody waits for messages, and virtual stages send them one by one and free nothing early."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers import layout_steps, small_model, spawn
from helpers.synchronisations import counted

from nvlm.model.parts import transformer_config
from nvlm.parallel.stand_in import stand_in
from nvlm.train.step import forward_step, run_schedule

TWO_STAGES = ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]

EXCHANGE = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm import platform

platform.current()
from megatron.core.pipeline_parallel.p2p_communication import _batched_p2p_ops, _p2p_ops

dist.init_process_group(platform.current().distributed_backend())
rank, other = dist.get_rank(), 1 - dist.get_rank()


def received(exchange):
    "What comes from the previous and from the next stage, which are the same process."
    tensors = {
        "tensor_send_prev": torch.tensor([10 + rank]),
        "tensor_send_next": torch.tensor([20 + rank]),
        "tensor_recv_prev": torch.zeros(1, dtype=torch.int64),
        "tensor_recv_next": torch.zeros(1, dtype=torch.int64),
    }
    requests = exchange(
        **tensors, group=dist.group.WORLD, prev_pipeline_rank=other, next_pipeline_rank=other
    )
    for request in requests.values() if isinstance(requests, dict) else requests:
        request.wait()
    return [int(tensors["tensor_recv_prev"]), int(tensors["tensor_recv_next"])]


Path(sys.argv[1], f"{rank}.json").write_text(
    json.dumps({"batched": received(_batched_p2p_ops), "overlapped": received(_p2p_ops)})
)
dist.destroy_process_group()
"""


@pytest.mark.parallel
def test_batched_messages_between_two_processes_are_swapped(tmp_path: Path):
    program = tmp_path / "exchange.py"
    program.write_text(EXCHANGE)
    spawn.run_program_or_fail(2, program, tmp_path, log=tmp_path / "log")
    for rank, other in ((0, 1), (1, 0)):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        from_previous, from_next = 20 + other, 10 + other
        assert found["overlapped"] == [from_previous, from_next]
        assert found["batched"] == [from_next, from_previous]


def waits(pipeline_rank: int) -> Counter[str]:
    """What a stage, alone among groups that carry nothing, waits for in four micro-batches."""
    config = small_model.small_config("parallel.pipeline=2", "stage.freeze=[]")
    with stand_in(config, pipeline_rank) as parallel:
        chunks = layout_steps.wrapped(small_model.build_chunks(config, parallel))
        micro_batches = layout_steps.with_images(config)
        run_schedule(forward_step, chunks, micro_batches[:1])  # copies what stays on the device
        with counted() as found:
            run_schedule(forward_step, chunks, micro_batches)
    return found


@pytest.mark.parametrize("pipeline_rank", [0, 1])
def test_plain_messages_are_waited_for_by_the_host(pipeline_rank, monkeypatch):
    # At the end of the step: whether there is a trained token.
    assert sum(waits(pipeline_rank).values()) == 1
    monkeypatch.setattr(transformer_config, "message_settings", lambda _: {})
    exchanges = "synchronize in pipeline_parallel/p2p_communication.py _communicate"
    assert waits(pipeline_rank)[exchanges] >= 4


def freed(monkeypatch) -> list[bool]:
    """Of each hidden state that a first stage frees after sending it: was the send waited for?

    The stage is alone, among process groups that have the right sizes and carry nothing.
    """
    from megatron.core.pipeline_parallel import schedules

    sent: dict[int, dist.Work] = {}
    waited: set[int] = set()
    found: list[bool] = []
    send, free = dist.isend, schedules.deallocate_output_tensor

    def isend(tensor, *args, **kwargs):
        work = send(tensor, *args, **kwargs)
        sent[id(tensor)] = work
        return Waiting(work, lambda: waited.add(id(tensor)))

    def deallocate(tensor, is_wanted=False):
        if is_wanted and id(tensor) in sent:
            found.append(id(tensor) in waited)
        free(tensor, is_wanted)

    config = small_model.small_config(*TWO_STAGES, "model.language.num_layers=4")
    with monkeypatch.context() as patch, stand_in(config, pipeline_rank=0) as parallel:
        patch.setattr(dist, "isend", isend)
        patch.setattr(schedules, "deallocate_output_tensor", deallocate)
        chunks = small_model.build_chunks(config, parallel)
        batches = [small_model.batch(config, seed, [40, 40], num_tiles=0) for seed in range(4)]
        schedules.get_forward_backward_func()(
            forward_step_func=lambda batches, chunk: (chunk(next(batches)), None),
            data_iterator=[iter(batches) for _ in chunks],
            model=chunks,
            num_microbatches=len(batches),
            seq_length=80,
            micro_batch_size=1,
        )
    assert sent
    return found


class Waiting:
    """A message on its way that says when it was waited for."""

    def __init__(self, work, note):
        self.work, self.note = work, note

    def wait(self):
        self.note()
        return self.work.wait()


def test_plain_schedule_frees_what_is_being_sent(monkeypatch):
    assert freed(monkeypatch) == []
    settings = transformer_config.message_settings(2)
    monkeypatch.setattr(
        transformer_config,
        "message_settings",
        lambda _: {**settings, "deallocate_pipeline_outputs": True},
    )
    assert False in freed(monkeypatch)
