"""`skipped.jsonl`: every sample that a run leaves out, named once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nvlm.batch import SkippedSample
from nvlm.files import json_line, read_json_lines
from nvlm.printing import printable
from nvlm.train.run_folder import SKIPPED_FILE, open_records

# Of a step; the file has all.
_NUM_PRINTED = 10


class SkippedFile:
    """Adds to the run's `skipped.jsonl`, after its lines up to `resumed_step`.

    `note` says what happened to later lines; None: there were none.
    """

    def __init__(self, folder: Path, resumed_step: int, console: Console):
        self._console = console
        self._file, self.note = open_records(folder / SKIPPED_FILE, resumed_step)
        self._named = set(map(_name, read_json_lines(folder / SKIPPED_FILE)))

    def add(self, step: int, skipped: list[SkippedSample]) -> None:
        """Each sample once, though every pass over its source skips it."""
        new = [
            sample for sample in dict.fromkeys(skipped) if _name(asdict(sample)) not in self._named
        ]
        for sample in new:
            self._named.add(_name(asdict(sample)))
            self._file.write(json_line({"step": step, **asdict(sample)}))
        self._file.flush()
        for sample in new[:_NUM_PRINTED]:
            self._say(
                printable(
                    f"skipped sample {sample.key} of {sample.shard}: {sample.reason}: "
                    f"{sample.detail}"
                )
            )
        if len(new) > _NUM_PRINTED:
            self._say(f"and {len(new) - _NUM_PRINTED:,} more skipped samples: {SKIPPED_FILE}")

    def close(self) -> None:
        self._file.close()

    def _say(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False, markup=False)


def _name(skipped: dict) -> int:
    """A short stand-in for the sample: a run may skip millions."""
    return hash((skipped["source"], skipped["shard"], skipped["key"], skipped["reason"]))
