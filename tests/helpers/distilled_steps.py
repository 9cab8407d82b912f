"""Two steps of a small model with a teacher of another size and more rows of padding.

As a script under torchrun: folder, layouts by name, and the kind of student. Each layout goes on
with the checkpoint of the one before it, the first with one process's, and leaves each rank's
results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from helpers import beside_batches, layout_steps, small_model
from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import write_checkpoint
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import Parallel, initialize, shut_down

TEACHER_SIZES = [
    "model.vision.num_layers=1",
    "model.language.num_layers=1",
    "model.language.ffn_hidden_size=96",
    "model.language.vocab_size=1088",
]
SINGLE = layout_steps.SINGLE
# Kind of student -> its overrides; and its teacher's. NVLM-D's teacher also teaches adapters.
STUDENTS = {
    "NVLM-D": [],
    "NVLM-X": beside_batches.SMALL["cross_attention"],
    "NVLM-H": beside_batches.SMALL["hybrid"],
    "adapters": ["stage.adapters={'language_model.*.linear_*.weight': {rank: 4}}"],
}
TEACHERS = {kind: [*STUDENTS[kind], "model.language.num_layers=2"] for kind in ("NVLM-X", "NVLM-H")}


def write_teacher(folder: Path, parallel: Parallel, *overrides: str) -> Path:
    config = small_model.small_config(*TEACHER_SIZES, *overrides)
    model = small_model.build(config, parallel)
    write_checkpoint(folder / "teacher", model.sharded_state_dict(), config)
    return folder / "teacher"


def config_of(folder: Path, run: str, *overrides: str) -> RunConfig:
    """A student in `folder`/`run` that learns from the teacher in `folder`."""
    distill = f"train.distill={{teacher: {folder / 'teacher'}, weight: 0.7, temperature: 2}}"
    config = layout_steps.config_of(*layout_steps.OPTIMIZER, distill, *overrides)
    return changed(config, {"run": RunSection(name="student", dir=str(folder / run))})


def micro_batches_of(config: RunConfig) -> list[MicroBatch]:
    is_fused = config.model.fusion != "decoder_only"
    return (layout_steps.with_rows_beside if is_fused else layout_steps.with_images)(config)


class DistilledSteps(layout_steps.TwoSteps):
    """`losses` has the distillation's besides."""

    batches = (micro_batches_of, micro_batches_of)

    def __init__(self, config: RunConfig, parallel: Parallel):
        from nvlm.train.teacher import Teacher, find_teacher

        super().__init__(config, parallel)
        teacher = find_teacher(config)
        assert teacher is not None
        self.training.teacher = Teacher(config, parallel, teacher)

    def take(self) -> None:
        super().take()
        result, step = self.taken.result, self.training.step
        numbers = [result.loss, result.grad_norm, result.distillation_loss]
        self.losses[step] = torch.tensor(numbers)


def main() -> None:
    folder, layouts, kind = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    resume_from = folder / SINGLE
    for name, overrides in layouts.items():
        config = config_of(folder, name, *STUDENTS[kind], *overrides)
        parallel = initialize(config)
        results = {
            layout_steps.STEPS: layout_steps.two_steps(config, parallel, True, DistilledSteps),
            layout_steps.RESUMED: layout_steps.second_step(
                config, parallel, resume_from, DistilledSteps
            ),
        }
        resume_from = folder / name
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
