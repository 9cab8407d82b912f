"""A token with the cache against one that is computed anew, and eight questions against one.

    python benchmarks/decoding.py [--rounds 3] [--tokens 16] [key=value ...]

A random model on one process, in fp32. All ways take turns, so that whatever else the machine does
meets all of them; their answers have to agree. Printed are medians of processor time per token:

    computed anew   a whole forward pass over the prompt and the answer so far, for every token
    n at once       `Session` with n questions of this length: each prompt once, then a token at a
                    time. The prompts' passes are left out, and measured by themselves
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import write_checkpoint
from nvlm.config import RunConfig, load_config
from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.parallel.groups import initialize

# Wide enough that products, not calls, take the time.
SIZES = [
    "train.precision=fp32",
    "model.vision.num_layers=2",
    "model.language.num_layers=8",
    "model.language.hidden_size=512",
    "model.language.ffn_hidden_size=1408",
    "model.language.num_attention_heads=8",
    "model.language.num_query_groups=2",
    "model.language.init_std=0.1",
]
PROMPT_LENGTHS = (128, 512, 2048)
BATCHES = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    config = load_config(Path("configs/run/tiny/sft.yaml"), [*SIZES, *arguments.overrides])
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(config, Path(folder) / "checkpoint")
        with Engine(checkpoint) as engine:
            engine.load()
            engine.stop_ids = frozenset()  # answers of one length
            compare(engine, arguments.rounds, arguments.tokens)


def random_checkpoint(config: RunConfig, target: Path) -> Path:
    parallel = initialize(config, world_size=1)
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.initialize import initialize_weights

    model = build_model(config, parallel)
    initialize_weights(model, config)
    return write_checkpoint(target, {"model": model.sharded_state_dict()}, config)


def compare(engine: Engine, num_rounds: int, num_tokens: int) -> None:
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number in range(num_rounds + 1):
        for length in PROMPT_LENGTHS:
            prompts = [a_prompt(length, seed) for seed in range(max(BATCHES))]
            expected, anew = computed_anew(engine, prompts[0], num_tokens)
            taken = {"computed anew": anew}
            for count in BATCHES:
                answers, first, rest = in_session(engine, prompts[:count], num_tokens)
                assert answers[0] == expected, "the ways disagree"
                taken[f"{count} at once"] = rest
                if count == 1:
                    taken["the prompt's pass"] = first
            for name, value in taken.items() if number else ():  # the first round warms up
                seconds[length, name].append(value)
    show({key: statistics.median(values) for key, values in seconds.items()})


def a_prompt(length: int, seed: int) -> EncodedPrompt:
    tokens = np.random.default_rng(seed).integers(0, 900, length)
    return EncodedPrompt(tokens, np.zeros(length, bool), np.zeros((0, 3, 112, 112), np.uint8))


@torch.no_grad()
def computed_anew(
    engine: Engine, prompt: EncodedPrompt, num_tokens: int
) -> tuple[list[int], float]:
    """The answer, and processor seconds per token."""
    ids, started = prompt.tokens.tolist(), time.process_time()
    for _ in range(num_tokens):
        tokens = torch.tensor([ids])
        batch = MicroBatch(
            tokens=tokens,
            labels=tokens,
            position_ids=torch.arange(len(ids))[None],
            image_mask=torch.zeros_like(tokens, dtype=torch.bool),
            cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
            tiles=torch.from_numpy(prompt.tiles),
        )
        ids.append(int(engine.model(batch, return_logits=True)[0, -1].argmax()))
    return ids[len(prompt.tokens) :], (time.process_time() - started) / num_tokens


def in_session(
    engine: Engine, prompts: list[EncodedPrompt], num_tokens: int
) -> tuple[list[list[int]], float, float]:
    """The answers; processor seconds of a prompt's pass, and per token that came later."""
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    with Session(engine, max_open=len(prompts)) as session:
        for key, prompt in zip(answers, prompts, strict=True):
            session.add(key, prompt, Sampling(num_tokens))
        first = rest = 0.0
        num_later = 0
        while session.num_open:
            num_begun = sum(map(bool, answers.values()))
            started = time.process_time()
            progress = session.step()
            spent = time.process_time() - started
            for part in progress:
                answers[part.key] += part.token_ids
            if num_begun < len(prompts):
                first += spent
            else:
                rest += spent
                num_later += len(progress)
    return list(answers.values()), first / len(prompts), rest / num_later


def show(medians: dict[tuple[int, str], float]) -> None:
    table = Table("tokens of the prompt", "way", "ms per token", "of computed anew", "of 1 at once")
    for (length, name), value in medians.items():
        anew, one = medians[length, "computed anew"], medians[length, "1 at once"]
        table.add_row(
            f"{length:,}", name, f"{1000 * value:.2f}", f"{value / anew:.3f}", f"{value / one:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
