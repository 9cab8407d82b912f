"""What trains and what does not, as a table before the first step."""

from __future__ import annotations

from rich.console import Console

from nvlm.config.schema import RunConfig
from nvlm.tables import print_table
from nvlm.train.freezing import ModuleRow


def print_module_table(rows: list[ModuleRow], config: RunConfig, console: Console) -> None:
    """What trains and what does not, before the first step."""
    cells, styles = [], []
    for row in rows:
        trains = row.num_trainable > 0
        lr = config.train.optimizer.lr * row.multiplier.lr
        weight_decay = config.train.optimizer.weight_decay * row.multiplier.weight_decay
        cells.append(
            [
                row.name,
                f"{row.num_parameters:,}",
                f"{row.num_trainable:,}" if trains else "frozen",
                f"{lr:.2e}" if trains else "-",
                f"{weight_decay:g}" if trains else "-",
            ]
        )
        styles.append(None if trains else "dim")
    total = [sum(row.num_parameters for row in rows), sum(row.num_trainable for row in rows)]
    cells.append(["total", *(f"{number:,}" for number in total), "", ""])
    print_table(
        console,
        f"{config.run.name}: stage {config.stage.name}",
        ["module", "parameters", "trainable", "learning\nrate", "weight\ndecay"],
        cells,
        styles=[*styles, "bold"],
    )
    console.print("Biases, norms and other vectors have no weight decay.", style="italic dim")
