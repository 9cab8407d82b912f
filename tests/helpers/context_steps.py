"""Gradients of the small model whose rows two processes share; see `layout_steps.py`.

As a script under torchrun; each rank writes a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helpers import layout_steps, small_model
from helpers.layout_steps import losses_and_gradients, without_images, wrapped
from nvlm.batch import MicroBatch
from nvlm.config import RunConfig
from nvlm.parallel.groups import initialize, shut_down


def with_images(config: RunConfig) -> list[MicroBatch]:
    """Also a row whose only tile one of the processes encodes."""
    return [
        *layout_steps.with_images(config),
        small_model.batch(config, 9, [30, 19], num_tiles=1),
    ]


CASES = {"with images": with_images, "without images": without_images}


def all_cases(overrides: list[str]) -> dict:
    """Every result of one layout on this process. `overrides` name the layout."""
    config = small_model.small_config(*overrides)
    parallel = initialize(config)
    chunks = wrapped(small_model.build_chunks(config, parallel))
    return {
        name: losses_and_gradients(chunks, make(config), parallel) for name, make in CASES.items()
    }


def main() -> None:
    folder, *overrides = sys.argv[1:]
    results = all_cases(overrides)
    torch.save(results, Path(folder) / f"rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
