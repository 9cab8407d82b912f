"""The power law of a grid over sizes: which cells are its points, and what the next size gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nvlm.ablate.cells import Cell
from nvlm.ablate.grid_file import Scaling
from nvlm.ablate.measure import Measured, trained_parameters
from nvlm.ablate.scaling import PowerLaw, Prediction, fit_power_law, predict


@dataclass(frozen=True)
class ScaledCells:
    """law: None where none can be fitted; `problem` says why."""

    about: Scaling
    points: list[tuple[str, float, float]]  # cell, size, loss: one of each seed
    law: PowerLaw | None = None
    next: Prediction | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"about": self.about.model_dump()}


def scale_cells(
    about: Scaling, cells: Sequence[tuple[Cell, Mapping[int, Measured]]]
) -> ScaledCells:
    """The law through the base and the cells that differ from it in `about.axis` alone."""
    points = []
    for cell, measured in cells:
        if set(cell.choices) <= {about.axis}:
            for seed, one in measured.items():
                if about.metric in one.metrics:
                    size = _size(about, cell, seed, one)
                    points.append((cell.name, size, one.metrics[about.metric]))
    sizes, losses = [size for _, size, _ in points], [loss for *_, loss in points]
    try:
        law = fit_power_law(sizes, losses)
    except ValueError as error:
        return ScaledCells(about, points, problem=str(error))
    beyond = about.next
    if beyond is None:
        *_, second, largest = sorted(set(sizes))
        beyond = largest * largest / second
    return ScaledCells(about, points, law, predict(law, sizes, losses, beyond))


def _size(about: Scaling, cell: Cell, seed: int, measured: Measured) -> float:
    if about.size == "tokens":
        return float(measured.tokens)
    total, trained = trained_parameters(cell.runs[seed].config)
    return float(total if about.size == "parameters" else trained)
