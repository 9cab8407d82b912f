"""A step of nvlm beside a loop over bare Megatron-core modules of the same shapes, in one run.

    python benchmarks/step.py [--size tiny medium] [--rounds N] [--overrides KEY=VALUE ...]

One process. The bare model is `CLIPViTModel`, two linear layers and `GPTModel` with Megatron-core's
local layers, its data-parallel wrapper and distributed optimizer, and the shortest loop there is:
forward, backward, gradients divided by the tokens, update. It has InternViT's shapes without its
norms of queries and keys and its layer scales, adds images to the embeddings without looking at
what is wrong, checks no loss and counts nothing. Each sequence is one document, which is all that
its attention can do. The encoder is frozen on both sides.

Its norms and SwiGLU are many operations and its attention is a product of all with all, so that it
is slower for what it computes. `our modules` is nvlm's model in the same shortest loop: the ratio
to it is what a step does besides.

Steps alternate and are measured in processor time of this process, so that other programs of the
machine disturb little, and all alike; printed are the medians, the ratio of medians, and the middle
half of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nvlm import platform
from nvlm.batch import IGNORED_LABEL, MicroBatch, StepBatch
from nvlm.config import RunConfig, load_config
from nvlm.parallel.groups import Parallel, initialize, shut_down

TINY_RUN = Path(__file__).parents[1] / "configs/run/tiny/sft.yaml"
COMMON = ["stage.freeze=['vision_model.*']", "train.precision=fp32", "train.global_batch_size=2"]
MEDIUM = [
    "model.vision.num_layers=4",
    "model.vision.hidden_size=512",
    "model.vision.ffn_hidden_size=2048",
    "model.vision.num_attention_heads=8",
    "model.vision.num_stored_attention_heads=8",
    "model.connector.ffn_hidden_size=1408",
    "model.language.num_layers=6",
    "model.language.hidden_size=512",
    "model.language.ffn_hidden_size=1408",
    "model.language.num_attention_heads=8",
    "model.language.num_query_groups=2",
    "model.language.vocab_size=8192",
    "stage.sequence_length=512",
]
SIZES: dict[str, list[str]] = {"tiny": [], "medium": MEDIUM}
NUM_TILES = 6  # of each sequence


def micro_batches(config: RunConfig) -> list[MicroBatch]:
    """The sequences of a step, one document each, its images in front."""
    vision, length = config.model.vision, config.stage.sequence_length
    generator = torch.Generator().manual_seed(0)
    vocabulary, batches = config.model.language.vocab_size, []
    for _ in range(config.train.global_batch_size):
        image_mask = torch.arange(length)[None] < NUM_TILES * config.model.num_tokens_per_tile
        labels = torch.randint(0, vocabulary, (1, length), generator=generator)
        shape = (NUM_TILES, 3, vision.image_size, vision.image_size)
        batches.append(
            MicroBatch(
                tokens=torch.randint(0, vocabulary, (1, length), generator=generator),
                labels=labels.masked_fill(image_mask, IGNORED_LABEL),
                position_ids=torch.arange(length)[None],
                image_mask=image_mask,
                cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
                tiles=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            )
        )
    return batches


def our_step(config: RunConfig, parallel: Parallel) -> Callable[[list[MicroBatch]], None]:
    from nvlm.train.training import Training, build_with_weights

    training = Training(config, parallel, build_with_weights(config, parallel, None))

    def step(batches: list[MicroBatch]) -> None:
        training.take_step(StepBatch(batches, [], {}))

    return step


def our_modules(config: RunConfig, parallel: Parallel) -> Any:
    from nvlm.model.nvlm_d import build_model

    return build_model(config, parallel)


def bare_step(model: Any, parallel: Parallel) -> Callable[[list[MicroBatch]], None]:
    """The shortest loop over `model`, whose weights are drawn without a thought."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from nvlm.platform.megatron_calls import OPTIMIZER_ARGUMENTS

    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.02)
        parameter.requires_grad_(not name.startswith(("vision.", "vision_model.")))
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True
    )
    wrapped = DistributedDataParallel(model.config, settings, model, pg_collection=parallel.groups)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-5, use_distributed_optimizer=True, clip_grad=10.0),
        [wrapped],
        pg_collection=parallel.groups,
        **OPTIMIZER_ARGUMENTS,
    )

    def step(batches: list[MicroBatch]) -> None:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        num_trained = 0
        for batch in batches:
            mask = batch.labels != IGNORED_LABEL
            num_trained += int(mask.sum())
            (wrapped(batch) * mask).sum().backward()
        wrapped.finish_grad_sync()
        wrapped.scale_gradients(1 / num_trained)
        optimizer.step()

    return step


def bare_model(config: RunConfig, parallel: Parallel) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.vision.clip_vit_model import CLIPViTModel
    from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_local_spec
    from megatron.core.transformer.module import MegatronModule

    from nvlm.model.parts.pixel_shuffle import pixel_shuffle
    from nvlm.model.parts.transformer_config import (
        language_transformer_config,
        vision_transformer_config,
    )

    sizes, groups = config.model, parallel.groups
    settings = replace(language_transformer_config(config, "local"), use_te_activation_func=False)

    class Bare(MegatronModule):
        def __init__(self) -> None:
            super().__init__(settings)
            self.vision = CLIPViTModel(
                vision_transformer_config(config, "local"),
                get_vit_layer_with_local_spec(),
                patch_dim=sizes.vision.patch_size,
                img_h=sizes.vision.image_size,
                img_w=sizes.vision.image_size,
                model_subtype="internvit",
                pg_collection=groups,
            )
            token_size = sizes.connector.token_size(sizes.connector_sizes)
            self.projector = nn.Sequential(
                nn.LayerNorm(token_size),
                nn.Linear(token_size, sizes.connector.ffn_hidden_size, bias=False),
                nn.GELU(),
                nn.Linear(sizes.connector.ffn_hidden_size, sizes.language.hidden_size, bias=False),
            )
            self.language = GPTModel(
                settings,
                get_gpt_layer_local_spec(normalization="RMSNorm"),
                vocab_size=sizes.language.vocab_size,
                max_sequence_length=sizes.language.max_position_embeddings,
                share_embeddings_and_output_weights=False,
                position_embedding_type="rope",
                rotary_base=int(sizes.language.rope_base),
                pg_collection=groups,
            )

        def forward(self, batch: MicroBatch) -> Tensor:
            with torch.no_grad():
                patches = self.vision(batch.tiles.float() / 255)[:, 1:]
            visual = self.projector(pixel_shuffle(patches)).flatten(0, 1)
            embeddings = self.language.embedding(batch.tokens, batch.position_ids)
            embeddings = torch.cat([visual.unsqueeze(1), embeddings[len(visual) :]])
            return self.language(
                batch.tokens,
                batch.position_ids,
                None,
                decoder_input=embeddings,
                labels=batch.labels.clamp(min=0),
            )

    return Bare()


def seconds(step: Callable[[list[MicroBatch]], None], batches: list[MicroBatch]) -> float:
    started = time.process_time()
    step(batches)
    return time.process_time() - started


def compare(config: RunConfig, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each contender."""
    parallel, batches = initialize(config), micro_batches(config)
    steps = {
        "nvlm": our_step(config, parallel),
        "our modules": bare_step(our_modules(config, parallel), parallel),
        "bare": bare_step(bare_model(config, parallel), parallel),
    }
    for step in steps.values():
        step(batches)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(num_rounds):
        # Each finds the caches as the one before left them: take turns in being first.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(seconds(steps[name], batches))
    shut_down()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    platform.current()
    table = Table("size", "nvlm, ms", "beside", "ms", "ratio", "of neighbours, middle half")
    for size in arguments.size:
        config = load_config(TINY_RUN, [*COMMON, *SIZES[size], *arguments.overrides])
        taken = compare(config, arguments.rounds)
        ours = taken.pop("nvlm")
        for name, others in taken.items():
            ratios = statistics.quantiles([a / b for a, b in zip(ours, others, strict=True)], n=4)
            table.add_row(
                size,
                f"{statistics.median(ours) * 1e3:.0f}",
                name,
                f"{statistics.median(others) * 1e3:.0f}",
                f"{statistics.median(ours) / statistics.median(others):.3f}",
                f"{ratios[0]:.3f} to {ratios[2]:.3f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
