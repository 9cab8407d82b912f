"""Run under torchrun by the tests: conversion by several processes, and Megatron-core's own part.

convert VISION LANGUAGE CHECKPOINT EXPORT     from and to Hugging Face, one share per process
rewrite CHECKPOINT OUT                        load at TP2 x PP2 and save, both by Megatron-core
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import small_folders


def convert(vision: str, language: str, checkpoint: str, export: str) -> None:
    from nvlm.convert import convert_from_hf, convert_to_hf
    from nvlm.convert.session import conversion_processes

    # One group for both: torchrun's rendezvous serves a process once.
    with conversion_processes():
        convert_from_hf(vision, language, small_folders.convert_config(), checkpoint)
        convert_to_hf(checkpoint, export, shard_size="2MB")


def rewrite(checkpoint: str, out: str) -> None:
    from nvlm.checkpoint_io import read_sharded, write_checkpoint
    from nvlm.model.nvlm_d import build_model
    from nvlm.parallel.groups import initialize, shut_down

    config = small_folders.convert_config("parallel.tensor=2", "parallel.pipeline=2")
    model = build_model(config, initialize(config))
    loaded = read_sharded(Path(checkpoint), {"model": model.sharded_state_dict()})
    model.load_state_dict(loaded["model"])
    write_checkpoint(out, {"model": model.sharded_state_dict()}, config)
    shut_down()


if __name__ == "__main__":
    {"convert": convert, "rewrite": rewrite}[sys.argv[1]](*sys.argv[2:])
