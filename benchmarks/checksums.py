"""What checksums cost: seconds to write a checkpoint, and to note or compare its files' checksums.

    python benchmarks/checksums.py [MEGABYTES]

Writes files of MEGABYTES (1,000 where not given) as Megatron-core does, two for one process, to a
temporary folder, with fsync, then measures `write_manifest` and `changed` with the files in memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from nvlm.checkpoint_files import changed, write_manifest


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = torch.randn(megabytes * 10**6 // 8)
        started = time.perf_counter()
        for number in range(2):
            with (folder / f"__0_{number}.distcp").open("wb") as file:
                torch.save(values, file)
                file.flush()
                os.fsync(file.fileno())
        written = time.perf_counter()
        write_manifest(folder)
        noted = time.perf_counter()
        assert changed(folder) is None
        compared = time.perf_counter()
    save, note, compare = written - started, noted - written, compared - noted
    print(f"{megabytes:,} MB: written in {save:.2f} s ({megabytes / save:,.0f} MB/s)")
    for what, seconds in (("checksums noted", note), ("checksums compared", compare)):
        print(f"{what}: {seconds:.2f} s ({megabytes / seconds:,.0f} MB/s), {seconds / save:.0%}")


if __name__ == "__main__":
    main()
