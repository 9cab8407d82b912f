"""Trains, on a disk that takes forever over the checkpoint of one step.

slow_writes STEP CONFIG [key=value ...]
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    from nvlm.config import load_config
    from nvlm.train.fit import train

    slow, flush = f"/.step_{int(sys.argv[1]):08d}.writing/", os.fsync

    def flush_slowly(file: int) -> None:
        if slow in os.readlink(f"/proc/self/fd/{file}"):
            time.sleep(600)
        flush(file)

    os.fsync = flush_slowly
    train(load_config(sys.argv[2], sys.argv[3:]))


if __name__ == "__main__":
    main()
