"""`nvlm plan`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import LARGEST, ConfigFile, Overrides, StageName, runs_to_show
from nvlm.plan.hardware import CARDS, DEFAULT_CARD


@app.command("plan", short_help="Reckon memory, time and messages of a run, without a GPU.")
def plan_command(
    config: ConfigFile,
    gpus: Annotated[int, typer.Option(min=1, max=LARGEST, help="How many GPUs.")],
    overrides: Overrides = None,
    stage: StageName = None,
    gpu: Annotated[str, typer.Option(help=f"Which card: {', '.join(CARDS)}.")] = DEFAULT_CARD,
    tiles: Annotated[
        Optional[float],  # noqa: UP045 - typer reads this annotation
        typer.Option(help="Tiles of a sequence, on average; else those of the run's index."),
    ] = None,
    tokens: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Tokens of a sample, on average; else those of the run's index."),
    ] = None,
    assume: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=VALUE", help="Another value of an assumption; may be repeated."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Rank other layouts on the same GPUs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Reckon a run on so many GPUs: memory by pipeline stage and whether it fits, operations, time.

    Nothing is built or read but the configuration and, where it is there, the index of its data.
    Every number that is assumed is printed with its source.
    """
    from nvlm.plan.assumptions import parse_overrides
    from nvlm.plan.hardware import card_named

    card, assumed = card_named(gpu), parse_overrides(assume or [])
    world_size = None if search else gpus
    for run in runs_to_show(config, overrides or [], stage, as_json, world_size):
        from nvlm.views.plan import print_plan, print_search, work_of

        work = work_of(run, tiles, tokens)
        show = print_search if search else print_plan
        show(run, gpus, card, assumed, work, as_json)
