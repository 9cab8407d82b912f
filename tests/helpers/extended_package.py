"""Trains, exports and opens the small model with a connector; of whichever nvlm is imported.

Usage: extended_package.py KIND FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers import layout_steps, small_model
from helpers.export_logits import export_logits
from helpers.export_runs import Exported
from nvlm.checkpoint_io import resolve_checkpoint
from nvlm.config import changed
from nvlm.config.schema import RunSection
from nvlm.convert import convert_to_hf
from nvlm.parallel.groups import initialize, shut_down


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    config = small_model.small_config(f"model.connector.kind={kind}", *layout_steps.OPTIMIZER)
    config = changed(config, {"run": RunSection(name="extended", dir=str(folder / "run"))})
    run = layout_steps.TwoSteps(config, initialize(config))
    run.take()
    run.take()
    run.training.save()
    moved = {key: float(change.norm()) for key, *_, change in run.result()["tensors"]}
    losses = [float(loss[0]) for loss in run.losses.values()]
    shut_down()
    checkpoint = resolve_checkpoint(folder / "run")
    exported = Exported(config, checkpoint, convert_to_hf(checkpoint, folder / "export"))
    with pytest.MonkeyPatch.context() as patch:
        logits = export_logits(exported, patch, folder / "modules")
    results = {
        "package": sys.modules["nvlm"].__file__,
        "losses": losses,
        "moved": moved,
        "difference": logits.largest_difference,
        "largest": float(logits.checkpoint.abs().max()),
    }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
