"""`nvlm config show`: the resolved configuration and the numbers that follow from it.

The output is one YAML document: the derived numbers are comments below the settings, so it can be
saved and trained from. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from nvlm.config.compose import Runs, load_runs, to_yaml
from nvlm.config.schema import RunConfig
from nvlm.config.stage_file import as_file
from nvlm.plan.work import most_tiles
from nvlm.printing import new_console, say
from nvlm.sizes.derived import DerivedNumbers, derive
from nvlm.sizes.memory import feature_bytes
from nvlm.sizes.parameters import ParameterCount


def show(
    path: str | Path,
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    stage: str | None = None,
) -> None:
    """Print `path` as resolved with `overrides`, in colour on a terminal.

    Args:
        stage: only this one, of a file with stages.

    Raises:
        ConfigError: the configuration is wrong, or `world_size` does not fit it.
    """
    runs = load_runs(path, overrides, world_size, stage)
    if stage is None and None not in runs:
        text = render_stages(runs, world_size)
    else:
        (config,) = runs.values()
        text = render_config(config, world_size)
    if not sys.stdout.isatty():
        say(text.rstrip("\n"))
        return
    from rich.syntax import Syntax

    new_console().print(Syntax(text, "yaml", background_color="default", word_wrap=True))


def render_stages(runs: Runs, world_size: int | None = None) -> str:
    """The same of a file with stages, which it is again."""
    text = to_yaml(as_file({str(name): config for name, config in runs.items()}))
    for name, config in runs.items():
        text += f"\n# Stage {name}\n#\n{_comments(config, world_size)}"
    return text


def render_config(config: RunConfig, world_size: int | None = None) -> str:
    """The resolved configuration as YAML, and its derived numbers as comments below it.

    Args:
        world_size: number of processes to derive for; None: the fewest that the layout needs.

    Raises:
        ConfigError: `world_size` does not fit the configuration.
    """
    return f"{to_yaml(config)}\n{_comments(config, world_size)}"


def _comments(config: RunConfig, world_size: int | None) -> str:
    numbers = derive(config, world_size)
    return "".join(f"# {line}".rstrip() + "\n" for line in _describe(config, numbers))


def _describe(config: RunConfig, numbers: DerivedNumbers):
    yield from _parameter_table(numbers)
    for pattern, num_matches in numbers.num_matches.items():
        if num_matches == 0:
            yield f"WARNING: stage.freeze pattern '{pattern}' matches no parameter"
    yield ""
    yield "Images and sequences"
    decoder_only = config.model.fusion == "decoder_only"
    beside = numbers.max_tokens_per_image_beside
    tagged = " with its tag" if config.stage.tile_tags != "none" else ""
    yield from _table(
        [
            (f"tokens per tile{tagged}", f"{numbers.num_tokens_per_tile:,}"),
            ("tiles per image, at most", f"{numbers.max_tiles_per_image:,}"),
            ("tokens per image, at most", f"{numbers.max_tokens_per_image:,}"),
            *([] if decoder_only else [("beside the sequence", f"{beside:,}")]),
            ("tokens per sequence", f"{config.stage.sequence_length:,}"),
        ]
    )
    yield ""
    parallel = config.parallel
    context = f"context {parallel.context} x " if parallel.context > 1 else ""
    yield (
        f"Layout on {numbers.world_size:,} processes: tensor {parallel.tensor} x {context}pipeline "
        f"{parallel.pipeline} x data {numbers.data_parallel_size}"
    )
    if parallel.shares_tiles:
        # Of all micro-batches, each as full of tiles as it can be.
        num_tiles = numbers.num_micro_batches * most_tiles(config)
        yield (
            f"Tiles are shared by the {parallel.model_parallel_size} processes of a replica, "
            "each of which has the whole vision model;"
        )
        yield (
            f"the first stage's keep the features of a step: {num_tiles:,} tiles at most, "
            f"{decimal(feature_bytes(config, num_tiles))}"
        )
    sequences = "packs" if config.stage.packing else "samples"
    yield from _table(
        [
            ("micro-batches per rank and step", f"{numbers.num_micro_batches:,}"),
            (f"{sequences} per step", f"{config.train.global_batch_size:,}"),
            ("tokens per step, padding counted", f"{numbers.max_tokens_per_step:,}"),
            (f"{sequences} in {config.train.steps:,} steps", f"{numbers.num_sequences:,}"),
        ]
    )


def _parameter_table(numbers: DerivedNumbers):
    rows: list[tuple[str, ParameterCount]] = [*numbers.parameters.items()]
    rows.append(("total", numbers.total))
    width = max(len(f"{count.total:,}") for _, count in rows)
    name_width = max(len(name) for name, _ in rows)
    heads = f"{'stored':>{width}}  {'trainable':>{width}}  {'frozen':>{width}}"
    yield f"{'Parameters':{name_width + 2}}  {heads}"
    for name, count in rows:
        yield (
            f"  {name:{name_width}}  {count.total:>{width},}  {count.trainable:>{width},}  "
            f"{count.frozen:>{width},}"
        )
    if numbers.num_zero_parameters:
        without = numbers.total.total - numbers.num_zero_parameters
        yield f"  {numbers.num_zero_parameters:,} of them are zero heads of the vision model;"
        yield f"  {without:,} without these"


def _table(rows: list[tuple[str, str]]):
    name_width = max(len(name) for name, _ in rows)
    width = max(len(value) for _, value in rows)
    for name, value in rows:
        yield f"  {name:{name_width}}  {value:>{width}}"
