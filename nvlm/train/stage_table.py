"""The table of pipeline stages before the first step: layers, expected time and memory."""

from __future__ import annotations

from rich.console import Console

from nvlm import platform
from nvlm.config.changed import changed
from nvlm.config.schema import RunConfig
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.layout import stage_seconds
from nvlm.plan.stage_bytes import stage_bytes
from nvlm.plan.work import largest_work, most_tiles
from nvlm.sizes.layout import stage_layers
from nvlm.tables import print_table


def print_stage_table(config: RunConfig, data_parallel_size: int, console: Console) -> None:
    """What each stage has, and what that is reckoned to take; nothing where there is one stage."""
    if config.parallel.pipeline == 1:
        return
    implementation = platform.current().resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    config = changed(config, {"model.layer_implementation": implementation})
    assumptions, work = assumptions_for(CARDS[DEFAULT_CARD]), largest_work(config)
    layers = stage_layers(config)
    seconds = stage_seconds(config, layers)
    rows = []
    for stage, chunks in enumerate(layers):
        held = stage_bytes(config, stage, data_parallel_size, work, assumptions)
        rows.append(
            [
                f"{stage}: {' + '.join(map(str, chunks))}",
                f"{1e3 * seconds[stage]:.3g}",
                f"{100 * seconds[stage] / max(seconds):.0f} %",
                *(f"{size / 1e9:.2f}" for size in (held.kept, held.coming, held.peak)),
            ]
        )
    print_table(
        console,
        f"pipeline stages, parallel.layout {config.parallel.layout}",
        [
            "stage and its\ndecoder layers",
            "ms per\nmicro-batch",
            "of the\nslowest",
            "weights and\noptimizer, GB",
            "within a\nstep, GB",
            "at most,\nGB",
        ],
        rows,
    )
    console.print(_note(config), style="italic dim", markup=False)


def _note(config: RunConfig) -> str:
    return (
        "Reckoned, not measured (nvlm plan): forwards and backwards on an H100, with "
        f"{most_tiles(config)} tiles a micro-batch; at most, also while it resumes, with what "
        "libraries take."
    )
