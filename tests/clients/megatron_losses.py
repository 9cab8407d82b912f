"""Run alone: token ids of prompts by training's encoder, and Megatron-core's loss of each.

Usage: megatron_losses.py CHECKPOINT PROMPTS.json OUT.json

PROMPTS.json has, by name, turns with `role`, `content` (marks for images in it) and `images`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import read_config, read_sharded, resolve_checkpoint
from nvlm.data.images.image import decode_image
from nvlm.data.text.encode import SampleEncoder
from nvlm.data.text.prepare import prepare_prompt
from nvlm.parallel.groups import initialize, shut_down


@torch.no_grad()
def main() -> None:
    from nvlm.model.nvlm_d import build_model

    checkpoint = resolve_checkpoint(sys.argv[1])
    config = read_config(checkpoint)
    encoder = SampleEncoder.from_config(config)
    model = build_model(config, initialize(config, world_size=1)).eval()
    model.load_state_dict(read_sharded(checkpoint, {"model": model.sharded_state_dict()})["model"])
    found = {}
    for name, turns in json.loads(Path(sys.argv[2]).read_text()).items():
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        files = [file for turn in turns for file in turn["images"]]
        images = [decode_image(Path(file).read_bytes()) for file in files]
        prompt = prepare_prompt(config, encoder, messages, images)
        ids, is_image = torch.from_numpy(prompt.tokens), torch.from_numpy(prompt.image_mask)
        batch = MicroBatch(
            tokens=ids[None],
            labels=torch.full_like(ids, -100)[None],
            position_ids=torch.arange(len(ids))[None],
            image_mask=is_image[None],
            cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
            tiles=torch.from_numpy(prompt.tiles),
        )
        logits = model(batch, return_logits=True)[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        found[name] = {"ids": ids.tolist(), "loss": losses[~is_image[1:]].mean().item()}
    shut_down()
    Path(sys.argv[3]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
