"""Transformer Engine's layers against the local ones.

Without a GPU its own Python runs, of each version that Megatron-core takes, with torch in the place
of its C++ extension (helpers/transformer_engine_stub.py): layers, sharding, gradients, optimizer.
Its kernels need a GPU (mark `gpu`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import adapter_steps, layout_steps, small_model, spawn, transformer_engine_steps
from helpers.layout_runs import short_and_long
from helpers.paths import REPOSITORY
from helpers.transformer_engine_steps import IMPLEMENTATIONS, SOURCES

VERSIONS = ("2.9.0", "2.10.0", "2.11.0")
NEWEST = VERSIONS[-1]
NUM_PROCESSES = 4
RECOMPUTED = [
    "train.recompute.vision.granularity=full",
    "train.recompute.language.granularity=full",
]
# Layout -> (what is frozen, overrides).
ONE_PROCESS = {"one process": ("trained", [])}
FROZEN = {
    "encoder frozen": ("encoder frozen", []),
    "projector only": ("projector only", []),
    "adapters": ("trained", [adapter_steps.DORA]),
}
LAYOUTS = {
    "TP2 + SP x PP2, recomputed": (
        "trained",
        ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2", *RECOMPUTED],
    ),
}
LONG_LAYOUTS = {
    "TP4 + SP": ("trained", ["parallel.tensor=4", "parallel.sequence=true"]),
    "TP2 x DP2": ("trained", ["parallel.tensor=2"]),
    "PP2 x DP2": ("trained", ["parallel.pipeline=2"]),
    # Whole encoders, in which no tensor rank has a part.
    "TP2 x PP2, shared tiles": (
        "encoder frozen",
        ["parallel.tensor=2", "parallel.pipeline=2", "parallel.vision=tile_parallel"],
    ),
}
# The decoder's documents, one to three in a micro-batch, and the encoder's batches of tiles.
DOCUMENTS = [("thd", "NVTE_PADDING_CAUSAL_MASK", number) for number in (1, 2, 3)]
TILES = [("sbhd", "NVTE_NO_MASK", number) for number in (2, 3)]
ONE_TILE = ("sbhd", "NVTE_NO_MASK", 1)  # of a share

needs_sources = pytest.mark.skipif(
    not all((SOURCES / version).is_dir() for version in VERSIONS),
    reason="needs Transformer Engine's Python: scripts/fetch_transformer_engine",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the stub is for machines without")


def run(version: str, layouts: dict, folder: Path, num_processes: int = 1) -> list[dict]:
    """Results of each process of `transformer_engine_steps`."""
    environment = spawn.environment()
    environment["PYTHONPATH"] = f"{SOURCES / version}{os.pathsep}{environment['PYTHONPATH']}"
    finished = subprocess.run(
        [
            sys.executable,
            transformer_engine_steps.__file__,
            version,
            str(folder),
            json.dumps(layouts),
            str(num_processes),
        ],
        timeout=240,
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20000:]
    return [
        torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(num_processes)
    ]


def check_same_parameters(results: list[dict]) -> None:
    """Names, shapes, attributes, sharded keys and places, on each rank; and who computes them."""
    for result in results:
        local, theirs = (result[implementation] for implementation in IMPLEMENTATIONS)
        assert local["described"] == theirs["described"]
        wrappers = {"TEColumnParallelLinear", "TERowParallelLinear"}
        assert theirs["modules"] >= {"TEDotProductAttention", *wrappers}
        assert not theirs["modules"] & {"SdpaAttention", "RowParallelLinear"}
        assert not any(name.startswith("TE") for name in local["modules"])
        # Its attention was chosen for all that came, by its own rules, and got the documents.
        assert not local["attention"]
        assert set(theirs["attention"]) <= {*DOCUMENTS, *TILES, ONE_TILE}


def largest_errors(found: list[dict], expected: list[dict]) -> tuple[float, float]:
    """Of the losses of any token, and of the gradient of the worst tensor; relative."""
    (losses, gradients), (true_losses, truth) = (
        (
            {key: values for result in results for key, values in result["losses"].items()},
            layout_steps.assemble(results),
        )
        for results in (found, expected)
    )
    assert losses.keys() == true_losses.keys() and gradients.keys() <= truth.keys()
    return (
        max(relative_error(losses[key], true_losses[key]) for key in losses),
        max(relative_error(gradients[key], truth[key]) for key in gradients),
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.any()
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def plain(parallel) -> dict:
    """Local layers in a process that knows nothing of Transformer Engine."""
    return transformer_engine_steps.results_of("local", "trained", [])


@no_gpu
@needs_sources
@pytest.mark.parametrize("version", short_and_long([NEWEST], VERSIONS[:-1]))
def test_python_of_transformer_engine_computes_what_local_layers_do(
    version, plain, tmp_path, measure
):
    layouts = {**ONE_PROCESS, **(FROZEN if version == NEWEST else {})}
    (result,) = run(version, layouts, tmp_path)
    resumed, fused = result.pop("resumed"), result.pop("fused")
    for name, by_implementation in result.items():
        check_same_parameters([by_implementation])
        local, theirs = (by_implementation[name] for name in IMPLEMENTATIONS)
        assert theirs["attention"] == sorted([*TILES, *DOCUMENTS])
        losses, gradients = largest_errors([theirs], [local])
        what = f"Transformer Engine {version} on torch, {name}"
        measure(f"losses, {what}", "local layers in the same process", losses, 0)
        measure(f"gradients of the worst tensor, {what}", "local layers there", gradients, 0)
    losses, gradients = largest_errors([result["one process"]["transformer_engine"]], [plain])
    measure(f"losses, Transformer Engine {version} on torch", "local layers", losses, 0)
    measure(f"gradients, Transformer Engine {version} on torch", "local layers", gradients, 0)

    # Rotated and added up as on a GPU, which rounds less often than local layers: 1.7e-4, 8.2e-3.
    assert fused["fusions"] == {"apply_rope_fusion": True, "gradient_accumulation_fusion": True}
    assert fused["rotated"] == [1, 2, 3]
    losses, gradients = largest_errors([fused], [plain])
    what = f"Transformer Engine {version} on torch, fused, bf16"
    measure(f"losses, {what}", "local layers", losses, 1e-3)
    measure(f"gradients, {what}", "local layers", gradients, 3e-2)

    assert resumed["optimizer"] == ["transformer_engine.pytorch.optimizers.fused_adam.FusedAdam"]
    assert resumed["overlapped"] == [True]
    assert resumed["steps of groups"] == [1, 1, 1, 1]
    assert resumed["resumed"] == resumed["uninterrupted"]
    assert resumed["weights differ"] == []


@no_gpu
@needs_sources
@pytest.mark.parallel
@pytest.mark.parametrize(
    "layouts", [LAYOUTS, pytest.param(LONG_LAYOUTS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_python_of_transformer_engine_at_other_layouts(layouts, plain, tmp_path, measure):
    by_rank = run(NEWEST, layouts, tmp_path, NUM_PROCESSES)
    for layout in layouts:
        check_same_parameters([result[layout] for result in by_rank])
        local, theirs = (
            [result[layout][implementation] for result in by_rank]
            for implementation in IMPLEMENTATIONS
        )
        losses, gradients = largest_errors(theirs, local)
        what = f"Transformer Engine on torch, {layout}"
        measure(f"losses, {what}", "local layers at that layout", losses, 0)
        measure(f"gradients of the worst tensor, {what}", "local layers there", gradients, 0)
        # In bf16, whose resolution is 4e-3: 1.8e-4 and 1.1e-2 at TP4, 0 and 2e-10 at PP2.
        losses, gradients = largest_errors(theirs, [plain])
        measure(f"losses, {what}, bf16", "one process, local layers", losses, 1e-3)
        measure(f"gradients, {what}, bf16", "one process, local layers", gradients, 3e-2)


needs_transformer_engine = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None,
    reason="needs a GPU and Transformer Engine",
)


def config_of(implementation: str, precision: str):
    return small_model.small_config(
        "stage.freeze=[]",
        f"model.layer_implementation={implementation}",
        f"train.precision={precision}",
    )


def loss_and_gradients(implementation: str, parallel) -> tuple[torch.Tensor, dict]:
    """bf16, QK-norm and full attention in the encoder, packed documents in the decoder."""
    from nvlm import platform
    from nvlm.train.optim import wrap_data_parallel

    config = config_of(implementation, "bf16")
    model = small_model.build(config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    micro_batch = small_model.batch(config, 1, [60, 20], num_tiles=2)
    micro_batch = micro_batch.to(platform.current().device())
    with torch.no_grad():
        mask = micro_batch.loss_mask()
        loss = (model(micro_batch) * mask).sum() / mask.sum()
    return loss, small_model.mean_loss_gradients(chunks, [micro_batch])


@pytest.mark.gpu
@needs_transformer_engine
def test_losses_and_gradients_in_bf16(parallel, measure):
    loss, gradients = loss_and_gradients("transformer_engine", parallel)
    expected_loss, expected = loss_and_gradients("local", parallel)
    assert gradients.keys() == expected.keys()
    worst = max(float((gradients[k] - e).norm() / e.norm()) for k, e in expected.items())
    # Bounds by the resolution of bf16 (2^-8), not by measurement: no GPU was at hand.
    error = float((loss - expected_loss).abs() / expected_loss)
    measure("loss, Transformer Engine in bf16, relative", "local layers", error, 1e-2)
    measure("gradients, Transformer Engine in bf16, worst tensor", "local layers", worst, 1e-1)


@pytest.mark.gpu
@needs_transformer_engine
def test_vision_encoder_in_fp32(parallel, measure):
    """The decoder's packed attention has no fp32 in Transformer Engine; the encoder's has."""
    from nvlm import platform
    from nvlm.model.encoders.internvit import InternViT
    from nvlm.model.parts.layers import layer_parts
    from nvlm.model.parts.transformer_config import vision_transformer_config

    config = config_of("local", "fp32")
    local = small_model.build(config, parallel).vision_model
    theirs = InternViT(
        config.model.vision,
        vision_transformer_config(config, config.model.vision, "transformer_engine"),
        layer_parts("transformer_engine"),
        parallel.groups,
    ).to(platform.current().device())
    theirs.load_state_dict(local.state_dict(), strict=False)
    tiles = small_model.batch(config, 1, [60], num_tiles=2).tiles.to(platform.current().device())
    outputs = {}
    for name, model in (("local", local), ("theirs", theirs)):
        outputs[name] = model(tiles)
        outputs[name].square().sum().backward()
    error = (outputs["theirs"] - outputs["local"]).norm() / outputs["local"].norm()
    parameters = dict(theirs.named_parameters())
    worst = max(
        float((parameters[name].grad - p.grad).norm() / p.grad.norm())
        for name, p in local.named_parameters()
    )
    # Transformer Engine may multiply fp32 in TF32, which keeps 10 bits.
    measure("InternViT, Transformer Engine in fp32, outputs", "local layers", float(error), 5e-3)
    measure("InternViT, Transformer Engine in fp32, gradients", "local layers", worst, 2e-2)


@pytest.mark.gpu
@needs_transformer_engine
@pytest.mark.parametrize(
    "writer, reader", [("transformer_engine", "local"), ("local", "transformer_engine")]
)
def test_a_checkpoint_of_one_is_read_by_the_other(writer, reader, parallel, tmp_path):
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import load_weights

    config = config_of(writer, "bf16")
    model = small_model.build(config, parallel)
    state = model.sharded_state_dict()
    assert not any(key.endswith("_extra_state") for key in state)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", {"model": state}, config)

    other = build_model(config_of(reader, "bf16"), parallel)
    load_weights(checkpoint, [other], parallel)
    written = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, written.pop(name)), name
    assert not written
