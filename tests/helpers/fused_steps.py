"""Two steps of the small NVLM-X or NVLM-H, the second also on another layout's checkpoint.

As a script under torchrun: folder, layouts by name, and the fusion. Each layout goes on with the
checkpoint of the one before it, the first with one process's, and leaves each rank's results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from helpers import beside_batches, layout_steps
from helpers.layout_steps import TwoFusedSteps
from nvlm.config import changed
from nvlm.config.schema import RunConfig, RunSection
from nvlm.parallel.groups import initialize, shut_down


def config_of(fusion: str, folder: Path, *layout: str) -> RunConfig:
    config = beside_batches.config_of(fusion, *layout, *layout_steps.OPTIMIZER)
    return changed(config, {"run": RunSection(name="fused", dir=str(folder))})


def main() -> None:
    folder, layouts, fusion = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    resume_from = folder / layout_steps.SINGLE
    for name, overrides in layouts.items():
        config = config_of(fusion, folder / name, *overrides)
        parallel = initialize(config)
        results = {
            layout_steps.STEPS: layout_steps.two_steps(config, parallel, True, TwoFusedSteps),
            layout_steps.RESUMED: layout_steps.second_step(
                config, parallel, resume_from, TwoFusedSteps
            ),
        }
        resume_from = folder / name
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
