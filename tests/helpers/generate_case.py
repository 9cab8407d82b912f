"""A checkpoint of a small random model and prompts for it; under torchrun, the answers to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from nvlm.checkpoint_io import write_checkpoint
from nvlm.config import RunConfig
from nvlm.config.schema import ParallelConfig
from nvlm.parallel.groups import Parallel, shut_down

MAX_NEW_TOKENS = 12


def make_checkpoint(config: RunConfig, parallel: Parallel, target: Path) -> Path:
    from helpers import small_model

    model = small_model.build(config, parallel)
    return write_checkpoint(target, {"model": model.sharded_state_dict()}, config)


def prompts(config: RunConfig, image_id: int) -> list[tuple[list[int], Tensor]]:
    """Two prompts with tiles and one without."""
    generator = torch.Generator().manual_seed(0)
    vision = config.model.vision
    cases = []
    for num_tiles, num_text_tokens in ((2, 9), (0, 5), (1, 30)):
        # Plain text ids only: no placeholder among them.
        text = torch.randint(0, 900, (num_text_tokens,), generator=generator).tolist()
        placeholders = [image_id] * (num_tiles * config.model.num_tokens_per_tile)
        shape = (num_tiles, 3, vision.image_size, vision.image_size)
        tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        cases.append((text[:3] + placeholders + text[3:], tiles))
    return cases


def answers(checkpoint: Path, layout: ParallelConfig | None = None) -> list[list[int]]:
    from nvlm.generate.engine import Engine

    engine = Engine(checkpoint, layout)
    engine.load()
    return [
        engine.generate(ids, tiles, MAX_NEW_TOKENS, stop_ids=())
        for ids, tiles in prompts(engine.config, engine.encoder.tokenizer.image_id)
    ]


def main() -> None:
    checkpoint, out, tensor, pipeline = sys.argv[1:]
    layout = ParallelConfig(tensor=int(tensor), pipeline=int(pipeline))
    result = answers(Path(checkpoint), layout)
    rank = torch.distributed.get_rank()
    Path(f"{out}.{rank}").write_text(json.dumps(result))
    shut_down()


if __name__ == "__main__":
    main()
