"""A checkpoint made of another one: checked, then written a few rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm import platform
from nvlm.checkpoint_files import write_origins
from nvlm.checkpoint_io import (
    check_contents,
    is_checkpoint,
    on_main_rank,
    replace_checkpoint,
    resolve_checkpoint,
)
from nvlm.config.schema import RunConfig
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.megatron.writer import Chunk, write_chunks
from nvlm.convert.session import (
    Stopwatch,
    check_free_space,
    check_target,
    conversion_processes,
    progress_bar,
)
from nvlm.errors import ConvertError
from nvlm.rows import Parameter


class Rewrite:
    """From `checkpoint`, whose tensors `reader` has, to `out`."""

    def __init__(self, checkpoint: str | Path, out: str | Path):
        """
        Args:
            checkpoint: a checkpoint that any layout wrote, or a run folder (its latest checkpoint).
            out: a new folder, or a checkpoint to be replaced once the new one is whole.

        Raises:
            CheckpointError: there is no whole checkpoint.
            ConvertError: `out` is something else, or what is read from.
        """
        self._watch, self.out = Stopwatch(), Path(out)
        check_target(self.out, [])
        if self.out.exists() and not is_checkpoint(self.out):
            raise ConvertError(
                f"{self.out}: exists and is not a checkpoint: remove it or name another"
            )
        self.checkpoint = resolve_checkpoint(checkpoint)
        check_target(self.out, [self.checkpoint])
        self.reader = CheckpointReader(self.checkpoint)

    def check_has(self, keys: Collection[str]) -> None:
        """Raise `ConvertError` where the checkpoint lacks a tensor."""
        if missing := [key for key in keys if key not in self.reader]:
            raise ConvertError(f"{self.checkpoint}: {', '.join(missing[:3])} is missing")

    def write(
        self,
        chunks: Sequence[Chunk],
        table: Sequence[Parameter],
        config: RunConfig,
        title: str,
        origins: Mapping[str, Any],
    ) -> Path:
        """Write `out`, whose tensors are those of `table`, in `chunks`; returns it.

        Under torchrun every process calls this and each writes its share. The optimizer's state and
        the position in the data stay behind.

        Args:
            config: of the new checkpoint.
            title: of the bar that shows how far this is.
            origins: what the checkpoint says of where it came from.

        Raises:
            CheckpointError: `out` cannot be written, or a file that is read was changed.
            ConvertError: a value is NaN or infinite, or the disk has no room.
        """
        num_bytes = sum(chunk.num_bytes for chunk in chunks)
        check_free_space(self.out, num_bytes)
        platform.current()  # Megatron-core, which completes the checkpoint, is imported after it
        with conversion_processes() as processes:
            check_contents(self.checkpoint)
            mine = processes.share(chunks, lambda chunk: chunk.num_bytes)

            def write(folder: Path) -> None:
                total = sum(chunk.num_bytes for chunk in mine)
                with progress_bar(title, total) as advance:
                    write_chunks(folder, mine, advance)
                on_main_rank(lambda: write_origins(folder, origins))

            replace_checkpoint(self.out, write, config)
            num_tensors = sum(row.num_tensors for row in table)
            self._watch.print_summary(f"Wrote {self.out}", num_tensors, num_bytes, processes)
        return self.out
