"""Run alone: log-likelihoods and greedy continuations of plain texts by Megatron-core.

Usage: megatron_texts.py CHECKPOINT TOKENIZER TEXTS.json OUT.json

TEXTS.json has lists of pairs by name: [context, continuation], whose likelihood is wanted, or
[prompt, number of new tokens]. The text is tokenised as one string, without turns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import read_config, read_sharded, resolve_checkpoint
from nvlm.generate.engine import Engine
from nvlm.parallel.groups import initialize, shut_down


def main() -> None:
    checkpoint, tokenizer_folder, texts_file, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)
    texts: dict[str, list] = json.loads(Path(texts_file).read_text())
    contexts = [pair for pairs in texts.values() for pair in pairs if isinstance(pair[1], str)]
    prompts = [pair for pairs in texts.values() for pair in pairs if not isinstance(pair[1], str)]
    likely = iter(likelihoods(Path(checkpoint), tokenizer, contexts))
    said = iter(continuations(Path(checkpoint), tokenizer, prompts))
    found = {
        name: [next(likely if isinstance(pair[1], str) else said) for pair in pairs]
        for name, pairs in texts.items()
    }
    Path(out).write_text(json.dumps(found))


@torch.no_grad()
def likelihoods(checkpoint: Path, tokenizer: Any, pairs: list) -> list[dict]:
    """Of each continuation its log-likelihood, and whether each of its tokens is the likeliest."""
    from nvlm.model.nvlm_d import build_model

    checkpoint = resolve_checkpoint(checkpoint)
    config = read_config(checkpoint)
    model = build_model(config, initialize(config, world_size=1)).eval()
    model.load_state_dict(read_sharded(checkpoint, {"model": model.sharded_state_dict()})["model"])
    size = config.model.vision.image_size
    found = []
    for context, continuation in pairs:
        num_context = len(tokenizer(context).input_ids)
        ids = torch.tensor([tokenizer(context + continuation).input_ids])
        length = ids.shape[1]
        batch = MicroBatch(
            tokens=ids,
            labels=torch.full_like(ids, -100),
            position_ids=torch.arange(length)[None],
            image_mask=torch.zeros_like(ids, dtype=torch.bool),
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            tiles=torch.zeros((0, 3, size, size), dtype=torch.uint8),
        )
        logits = model(batch, return_logits=True)[0, num_context - 1 : -1].float()
        wanted = ids[0, num_context:]
        chosen = logits.log_softmax(-1).gather(1, wanted[:, None])
        is_greedy = bool((logits.argmax(-1) == wanted).all())
        found.append({"likelihood": float(chosen.sum()), "is_greedy": is_greedy})
    shut_down()
    return found


def continuations(checkpoint: Path, tokenizer: Any, pairs: list) -> list[dict]:
    with Engine(checkpoint) as engine:
        engine.load()
        size = engine.config.model.vision.image_size
        tiles = torch.zeros((0, 3, size, size), dtype=torch.uint8)
        end_id = engine.encoder.tokenizer.end_id
        found = []
        for prompt, max_new_tokens in pairs:
            ids = engine.generate(tokenizer(prompt).input_ids, tiles, max_new_tokens, {end_id})
            found.append({"text": tokenizer.decode(ids, skip_special_tokens=True)})
        return found


if __name__ == "__main__":
    main()
