"""8-bit training with Transformer Engine's Python and no kernels: what is set up, saved and read.

As a script, in two processes: `transformer_engine_stub` has no 8-bit products, so that steps are
taken in 16 bits, and factors are set by hand. Each rank writes a file of results.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers import transformer_engine_stub
from helpers.transformer_engine_steps import MACHINE, SOURCES, built_for, config_of

DELAYED = ["delayed", "margin=2", "amax_history_len=3", "amax_compute_algo=max", "format=e4m3"]
RECIPES = {"delayed": DELAYED, "tensorwise": ["tensorwise"], "blockwise": ["blockwise"]}


def fp8_config(folder: Path, recipe: list[str], *layout: str):
    """Wide enough for 8-bit products at tensor size 2; what trains is all but the encoder."""
    from nvlm.config import changed
    from nvlm.config.schema import RunSection

    settings = [f"train.fp8.recipe={recipe[0]}", *(f"train.fp8.{word}" for word in recipe[1:])]
    config = config_of("transformer_engine", *settings, *layout, "stage.freeze=['vision_model.*']")
    return changed(config, {"run": RunSection(name="fp8", dir=str(folder))})


def new_training(config):
    from helpers import layout_steps
    from nvlm.parallel.groups import initialize

    parallel = initialize(config)
    with built_for(MACHINE):
        return layout_steps.TwoSteps(config, parallel)


@contextlib.contextmanager
def in_sixteen_bits(chunks: list) -> Iterator[None]:
    """Passes of these chunks meanwhile."""
    kept = [chunk.config.fp8 for chunk in chunks]
    for chunk in chunks:
        chunk.config.fp8 = None
    yield
    for chunk, fp8 in zip(chunks, kept, strict=True):
        chunk.config.fp8 = fp8


def factors(training) -> dict:
    return {t.key: t.data for chunk in training.chunks for t in chunk.module.scaling_tensors()}


def number_of(key: str) -> float:
    """A value that belongs to a key."""
    return 1.0 + sum(key.encode()) % 97


def described(recipe: list[str]) -> dict:
    """What Transformer Engine's modules get of the configuration."""
    from megatron.core.fp8_utils import get_fp8_context
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    FP8GlobalStateManager.reset()
    run = new_training(fp8_config(Path("none"), recipe))
    model = run.training.chunks[0].module
    decoder = model.language_model.decoder
    with get_fp8_context(decoder.config):
        found = FP8GlobalStateManager.get_fp8_recipe()
    linears = {
        name
        for name, module in model.named_modules()
        if getattr(module, "fp8_meta", {}).get("recipe") is not None and hasattr(module, "weight")
    }
    return {
        "recipe": type(found).__mro__[1 if recipe[0] == "delayed" else 0].__name__,
        "settings": {
            name: str(getattr(found, name, None))
            for name in ("fp8_format", "margin", "amax_history_len", "amax_compute_algo")
        },
        "linears with factors": linears,
        "others": [
            model.vision_model.decoder.config.fp8,
            model.vision_projection.mlp.config.fp8,
        ],
        "extra state": bytes(decoder.layers[0].mlp.linear_fc1.get_extra_state().tolist()[:2]),
        "stopped at": kernel_reached(run),
    }


def kernel_reached(run) -> str:
    """Where a step needs the first kernel that the stub does not have."""
    try:
        run.take()
    except NotImplementedError as error:
        return str(error)
    return "nothing"


def saved_and_read(folder: Path) -> dict:
    """Factors written at TP2, read at PP2, and where a checkpoint has none."""
    import torch

    run = new_training(fp8_config(folder, DELAYED, "parallel.tensor=2"))
    with in_sixteen_bits(run.training.chunks):
        run.take()
    for key, values in factors(run.training).items():
        values.fill_(number_of(key))
    run.training.save()
    written = {key: values.clone() for key, values in factors(run.training).items()}

    other = new_training(fp8_config(folder, DELAYED, "parallel.pipeline=2"))
    for values in factors(other.training).values():
        values.fill_(torch.nan)
    other.load(folder)
    read = {key: values.clone() for key, values in factors(other.training).items()}

    plain = new_training(fp8_config(folder / "plain", ["none"], "parallel.tensor=2"))
    plain.take()
    plain.training.save()
    later = new_training(fp8_config(folder / "plain", DELAYED, "parallel.tensor=2"))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        later.load(folder / "plain")
    begun = {key: values.clone() for key, values in factors(later.training).items()}
    return {"written": written, "read": read, "begun": begun, "said": said.getvalue()}


def run_rank(local_rank: int, folder: Path, num: int) -> None:
    import torch

    from nvlm.parallel.groups import shut_down

    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(num))
    results: dict = saved_and_read(folder / "run")
    torch.version.cuda = "13.0"  # which scaling by blocks is refused without
    results["described"] = {name: described(recipe) for name, recipe in RECIPES.items()}
    torch.save(results, folder / f"rank{local_rank}.pt")
    shut_down()


def main() -> None:
    """Arguments: version of Transformer Engine, folder."""
    version, folder, num = sys.argv[1], Path(sys.argv[2]), 2
    transformer_engine_stub.install(SOURCES / version)
    from nvlm import platform

    platform.current()
    for name in ("nvlm.train.training", "helpers.layout_steps", "transformers"):
        importlib.import_module(name)
    from torch import multiprocessing

    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(free.getsockname()[1]))
    multiprocessing.start_processes(run_rank, (folder, num), nprocs=num, start_method="fork")


if __name__ == "__main__":
    main()
