"""The small model with Transformer Engine's layers and with `local` ones, on the CPU, side by side.

As a script: goes through several layouts with `transformer_engine_stub`, in one process or several,
and writes each rank's results to a file, a dictionary of layout -> implementation -> what.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers import transformer_engine_stub
from helpers.paths import REPOSITORY

# `scripts/install dev` fetches them: Python of Transformer Engine, a folder for each version.
SOURCES = REPOSITORY / ".venv" / "transformer_engine"
IMPLEMENTATIONS = ("local", "transformer_engine")
FREEZE = {
    "trained": "[]",
    "encoder frozen": "['vision_model.*']",
    "projector only": "['vision_model.*','language_model.*']",
}
ATTRIBUTES = (
    "tensor_model_parallel",
    "partition_dim",
    "partition_stride",
    "sequence_parallel",
    "allreduce",
    "requires_grad",
)


def config_of(implementation: str, *overrides: str):
    from helpers import small_model

    layers = f"model.layer_implementation={implementation}"
    return small_model.small_config("train.precision=bf16", layers, *overrides)


# What an H100 has in the image of docker/, as far as the stub can stand in for it.
MACHINE = {
    "device": "H100",
    "capability": (9, 0),
    "packages": {"transformer_engine": "2.11.0", transformer_engine_stub.WEIGHT_GRADIENTS: "0.1"},
}
# Of `MACHINE`, on a model that is built for it: Megatron-core's names.
FUSIONS = ("apply_rope_fusion", "gradient_accumulation_fusion")


@contextlib.contextmanager
def built_for(machine: dict | None) -> Iterator[None]:
    """What is built meanwhile uses the kernels of this machine (None: of no GPU)."""
    from nvlm.platform import cpu
    from nvlm.platform.machine import Machine

    found = cpu.machine
    if machine:
        cpu.machine = lambda: Machine(**machine)
    try:
        yield
    finally:
        cpu.machine = found


def results_of(
    implementation: str, frozen: str, overrides: list[str], machine: dict | None = None
) -> dict:
    """`layout_steps.losses_and_gradients` in bf16, and how the parameters are described.

    Four micro-batches: packed documents and single ones, with tiles and without.
    """
    from helpers import layout_steps, small_model
    from nvlm.parallel.groups import initialize

    config = config_of(implementation, *overrides, f"stage.freeze={FREEZE[frozen]}")
    parallel = initialize(config)
    with built_for(machine):
        chunks = small_model.build_chunks(config, parallel)
    layout_steps.freeze(chunks, config, parallel)
    described = [describe(chunk) for chunk in chunks]
    kinds = {type(module).__name__ for chunk in chunks for module in chunk.modules()}
    transformer_engine_stub.attention_calls.clear()
    transformer_engine_stub.rotation_calls.clear()
    steps = layout_steps.losses_and_gradients(
        layout_steps.wrapped(chunks), layout_steps.with_images(config), parallel
    )
    attention = sorted(set(transformer_engine_stub.attention_calls))
    return {
        **steps,
        "described": described,
        "modules": kinds,
        "attention": attention,
        "rotated": sorted(set(transformer_engine_stub.rotation_calls)),
        "fusions": {name: getattr(chunks[-1].config, name) for name in FUSIONS},
    }


def describe(chunk) -> dict[str, dict[str, tuple]]:
    """What Megatron-core and checkpoints know of each parameter besides its values."""
    from nvlm.model.parts.initialize import sharded_tensors

    parameters = {
        name: (
            tuple(parameter.shape),
            parameter.dtype,
            *(getattr(parameter, attribute, None) for attribute in ATTRIBUTES),
        )
        for name, parameter in chunk.named_parameters()
    }
    state = chunk.sharded_state_dict()
    shards = {
        f"{shard.key} {shard.global_offset}": (
            shard.local_shape,
            shard.global_shape,
            shard.axis_fragmentations,
            shard.replica_id,
            shard.prepend_axis_num,
        )
        for shard in sharded_tensors(state)
    }
    return {"parameters": parameters, "keys": dict.fromkeys(state, ()), "shards": shards}


def resumed_steps(folder: Path) -> dict[str, list]:
    """Loss and gradient norm of step 2, gone on with and resumed from step 1's checkpoint.

    With Transformer Engine's optimizer, and parameter groups that differ in their rate.
    """
    from helpers import layout_steps
    from nvlm.config import changed
    from nvlm.config.schema import RunSection
    from nvlm.parallel.groups import initialize

    multipliers = "train.optimizer.lr_multipliers={'vision_projection.*': 2.0}"
    config = config_of(
        "transformer_engine", "stage.freeze=[]", multipliers, "train.schedule.warmup_steps=0"
    )
    config = changed(config, {"run": RunSection(name="resumed", dir=str(folder))})
    parallel = initialize(config)
    run = layout_steps.TwoSteps(config, parallel)
    run.take()
    run.training.save()
    run.take()
    again = layout_steps.TwoSteps(config, parallel)
    again.load(folder)
    steps_of_groups = [group["step"] for group in again.training.optimizer.param_groups]
    again.take()
    parts = [part.optimizer for part in again.training.optimizer.chained_optimizers]
    weights = zip(run.result()["tensors"], again.result()["tensors"], strict=True)
    return {
        "optimizer": [f"{type(part).__module__}.{type(part).__name__}" for part in parts],
        "steps of groups": steps_of_groups,
        "overlapped": [chunk.ddp_config.overlap_param_gather for chunk in again.training.chunks],
        "uninterrupted": [run.losses[2].tolist()],
        "resumed": [again.losses[2].tolist()],
        "weights differ": [one[0] for one, other in weights if not one[-1].equal(other[-1])],
    }


def run_rank(local_rank: int, folder: Path, layouts: dict, num: int) -> None:
    """One of `num` processes, forked from one that has everything imported."""
    import torch

    from nvlm.parallel.groups import shut_down

    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(num))
    results = {}
    for layout, (frozen, overrides) in layouts.items():
        results[layout] = {
            implementation: results_of(implementation, frozen, overrides)
            for implementation in IMPLEMENTATIONS
        }
    if num == 1:
        results["fused"] = results_of("transformer_engine", "trained", [], MACHINE)
        with built_for(MACHINE):
            results["resumed"] = resumed_steps(folder / "run")
    torch.save(results, folder / f"rank{local_rank}.pt")
    shut_down()


def main() -> None:
    """Arguments: version, folder for the results, JSON of layout -> (frozen, overrides), ranks."""
    version, folder, layouts, num = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
    transformer_engine_stub.install(SOURCES / version)
    from nvlm import platform

    platform.current()
    for name in ("nvlm.train.training", "helpers.layout_steps", "transformers"):
        importlib.import_module(name)
    from torch import multiprocessing

    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(free.getsockname()[1]))
    arguments = (folder, layouts, num)
    multiprocessing.start_processes(run_rank, arguments, nprocs=num, start_method="fork")


if __name__ == "__main__":
    main()
