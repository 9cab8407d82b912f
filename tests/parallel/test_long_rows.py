"""A long row, from shards to an optimizer step, shared by two processes.

The model is one layer of one head, so that a CPU can: what grows with the length is all there.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from helpers.spawn import metrics, run_or_fail

# YaRN's recipe: four times what the model was trained on.
SIZES = [
    "model.vision.num_layers=1",
    "model.language.num_layers=1",
    "model.language.hidden_size=64",
    "model.language.ffn_hidden_size=64",
    "model.language.num_attention_heads=1",
    "model.language.num_query_groups=1",
    "train.steps=1",
    "train.global_batch_size=1",
    "train.precision=fp32",
    "data.num_workers=0",
    "log.tensorboard=false",
]


def write_data(folder: Path, length: int, shares: tuple[float, ...] = (0.6, 0.35)) -> Path:
    """Texts of these shares of a row of so many tokens, and questions about images."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny/qwen2")
    letters = random.Random(0)
    line = "".join(letters.choice("abcdefghijklmnopqrstuvwxyz     ") for _ in range(400)) + "\n"
    # Lines that are repeated are tokenised as this one.
    num_tokens = (len(tokenizer(line * 10)["input_ids"]) + 9) // 10
    image = [draw_image(224, 112)]
    samples = [make_sample(f"image{n}", "What is this?", "a picture", image) for n in range(12)]
    for share in shares:
        text = line * int(length * share / num_tokens)
        content = as_json(("user", "Go on."), ("assistant", text), task="test")
        samples.append({"__key__": f"text{round(100 * share)}", "json": content})
    write_shard(folder / "train/texts/0.tar", samples)
    return folder


def train(folder: Path, length: int, num_processes: int, *more: str) -> dict:
    scaling = f"{{kind: yarn, factor: 4, original_max_position_embeddings: {length // 4}}}"
    run_or_fail(
        num_processes,
        "train",
        "configs/run/tiny/sft.yaml",
        f"run.dir={folder / f'{num_processes}'}",
        f"data.root={folder / 'data'}",
        "data.blend={texts: 1}",
        f"stage.sequence_length={length}",
        f"model.language.max_position_embeddings={length}",
        f"model.language.rope_scaling={scaling}",
        *SIZES,
        *more,
        log=folder / f"{num_processes}.log",
        timeout_seconds=1500,
    )
    (step,) = metrics(folder / f"{num_processes}")
    return step


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.timeout(1800)
def test_a_row_of_32k_tokens(tmp_path, measure):
    length = 32_768
    write_data(tmp_path / "data", length)
    alone = train(tmp_path, length, 1)
    shared = train(tmp_path, length, 2, "parallel.context=2")
    assert alone["tokens"] > length / 2 and alone["tiles"] > 0
    for key in ("tokens", "tiles", "samples"):
        assert shared[key] == alone[key]
    for key in ("loss", "grad_norm"):
        error = abs(shared[key] - alone[key]) / alone[key]
        measure(f"{key} of a row of 32,768 tokens, two processes", "one process", error, 1e-5)
