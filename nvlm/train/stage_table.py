"""The table of pipeline stages before the first step: layers, expected time and memory."""

from __future__ import annotations

from rich.console import Console

from nvlm import platform
from nvlm.config.schema import RunConfig
from nvlm.plan.layout import stage_seconds
from nvlm.plan.work import most_tiles
from nvlm.sizes.layout import stage_layers
from nvlm.sizes.parameters import VISION
from nvlm.sizes.step_memory import step_memory
from nvlm.tables import print_table


def print_stage_table(config: RunConfig, data_parallel_size: int, console: Console) -> None:
    """What each stage has, and what that is reckoned to take; nothing where there is one stage."""
    if config.parallel.pipeline == 1:
        return
    implementation = platform.current().resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    layers, num_tiles = stage_layers(config), most_tiles(config)
    seconds = stage_seconds(config, layers)
    rows = []
    for stage, chunks in enumerate(layers):
        held = step_memory(config, stage, data_parallel_size, num_tiles, implementation)
        rows.append(
            [
                f"{stage}: {' + '.join(map(str, chunks))}",
                f"{1e3 * seconds[stage]:.3g}",
                f"{100 * seconds[stage] / max(seconds):.0f} %",
                *(
                    f"{number / 1e9:.2f}"
                    for number in (held.kept.total, held.activations, held.total)
                ),
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
            "activa-\ntions, GB",
            "together,\nGB",
        ],
        rows,
    )
    console.print(_note(config), style="italic dim", markup=False)


def _note(config: RunConfig) -> str:
    note = (
        "Reckoned, not measured (nvlm plan): forwards and backwards on an H100, with "
        f"{most_tiles(config)} tiles a micro-batch; libraries and passing buffers come on top."
    )
    if not any(pattern.startswith(VISION) for pattern in config.stage.freeze):
        note += " What the encoder keeps for its gradients is not counted."
    return note
