"""Passes of the small model with dropout, at some layouts: what is zeroed where, and gradients.

As a script under torchrun: folder, layouts by name; each rank writes its results to a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from helpers import layout_steps, small_model
from nvlm.batch import MicroBatch
from nvlm.config import RunConfig
from nvlm.model.parts.attention import SdpaAttention
from nvlm.model.parts.dropout import begin_step
from nvlm.model.parts.names import named_modules, named_parameters
from nvlm.parallel.groups import Parallel, initialize, shut_down

SHARE = 0.25
HIDDEN, ATTENTION = f"train.hidden_dropout={SHARE}", f"train.attention_dropout={SHARE}"
FULL = "train.recompute.language.granularity=full"
SELECTIVE = "train.recompute.language.granularity=selective"
# Where gradients come back through what is zeroed before the layers, and in attention.
DIRECTIONS = {"embeddings": "word_embeddings", "queries, keys, values": "language_model*linear_qkv"}
MOVED = 0.01


def config_of(*overrides: str) -> RunConfig:
    return layout_steps.config_of("stage.freeze=[]", *overrides)


def wrapped(config: RunConfig, parallel: Parallel) -> list:
    return layout_steps.wrapped(small_model.build_chunks(config, parallel))


def micro_batches(config: RunConfig) -> list[MicroBatch]:
    if config.model.fusion == "decoder_only":
        return layout_steps.with_images(config)
    return layout_steps.with_rows_beside(config)


def step(chunks: list, config: RunConfig, parallel: Parallel, number: int = 3) -> dict:
    """Losses and gradients of step `number`, which draws its numbers anew."""
    begin_step(config, parallel, number)
    return layout_steps.losses_and_gradients(chunks, micro_batches(config), parallel)


def losses_along(
    chunks: list, config: RunConfig, parallel: Parallel, part: str, moved: float = MOVED
) -> dict:
    """Losses a bit up and down the gradient of the parameters that have `part` in their names.

    The distance follows from all ranks' gradients; the same numbers are drawn both times.

    Args:
        moved: how much the mean loss would change along a line.
    """
    pieces = part.split("*")
    parameters = [
        parameter
        for name, parameter in named_parameters([chunk.module for chunk in chunks])
        if all(piece in name for piece in pieces)
    ]
    gradients = [parameter.main_grad.clone() for parameter in parameters]
    square = torch.tensor([float(sum(g.square().sum() for g in gradients))])
    torch.distributed.all_reduce(square)  # of alike ones several times: the distance is less then
    distance = moved / float(square)
    losses = {}
    with torch.no_grad():
        for sign in (1, -1):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(sign * distance * gradient)
            with torch.enable_grad():
                losses[sign] = step(chunks, config, parallel)["losses"]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(sign * distance * gradient)
    return {"distance": distance, "losses": losses}


@contextmanager
def seen(chunks: list) -> Iterator[dict[str, list[Tensor]]]:
    """What enters the first layer of this process, and what its first attention gives."""
    found: dict[str, list[Tensor]] = {"entering": [], "attention": []}

    def enters(_module, positional, named):
        hidden = positional[0] if positional else named["hidden_states"]
        found["entering"].append(hidden.detach().clone())

    layer = chunks[0].module.language_model.decoder.layers[0]
    (attention,) = (m for _, m in named_modules(layer) if isinstance(m, SdpaAttention))
    handles = [
        layer.register_forward_pre_hook(enters, with_kwargs=True),
        attention.register_forward_hook(
            lambda _module, _inputs, out: found["attention"].append(out.detach().clone())
        ),
    ]
    yield found
    for handle in handles:
        handle.remove()


def weights_dropped(config: RunConfig, parallel: Parallel, chunks: list) -> Tensor:
    """What the first attention makes of ones: each head's sum of the weights that are left.

    The input of all ranks is alike, so that only what is drawn differs.
    """
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    begin_step(config, parallel, 3)
    attention = chunks[0].module.language_model.decoder.layers[0].self_attention.core_attention
    heads = config.model.language.num_attention_heads // config.parallel.tensor
    ones = torch.ones(40, 1, heads, config.model.language.head_dim)
    # With sequence parallelism the whole block of layers draws so.
    with get_cuda_rng_tracker().fork() if config.parallel.sequence else nullcontext():
        return attention(ones, ones, ones, None)[:, 0].unflatten(-1, (heads, -1))[..., 0]


def all_cases(overrides: list[str], save_to: Path) -> dict:
    """Every result of one layout on this process; with context parallelism attention has none."""
    both_kinds = [HIDDEN] if any("context" in key for key in overrides) else [HIDDEN, ATTENTION]
    config = config_of(*overrides, *both_kinds)
    parallel = initialize(config)
    chunks = wrapped(config, parallel)
    with seen(chunks) as found:
        both = step(chunks, config, parallel)
    along = {
        name: losses_along(chunks, config, parallel, part) for name, part in DIRECTIONS.items()
    }
    recomputed = {}
    for name, setting in (("full", FULL), ("selective", SELECTIVE)):
        other = config_of(*overrides, *both_kinds, setting)
        recomputed[name] = step(wrapped(other, parallel), other, parallel)
    only_hidden = config_of(*overrides, HIDDEN)
    return {
        "both": both,
        "seen": found,
        "heads": weights_dropped(config, parallel, chunks),
        "along": along,
        "recomputed": recomputed,
        "hidden": step(wrapped(only_hidden, parallel), only_hidden, parallel),
        "resumed": resumed([*overrides, *both_kinds], parallel, save_to),
    }


def resumed(overrides: list[str], parallel: Parallel, save_to: Path) -> dict[str, dict]:
    """The second of two steps by itself, after much that draws numbers, and in one go."""
    folder = [f"run.dir={save_to}", *layout_steps.OPTIMIZER]
    config = config_of(*overrides, *folder)
    in_one_go = layout_steps.two_steps(config, parallel, save=True)
    torch.manual_seed(99 + parallel.rank)
    torch.rand(parallel.rank + 1)
    return {
        "in one go": in_one_go,
        "from a checkpoint": layout_steps.second_step(config, parallel, save_to),
    }


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, overrides in layouts.items():
        results = all_cases(overrides, folder / name)
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
