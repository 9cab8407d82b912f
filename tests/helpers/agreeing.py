"""A rank of three, of which 0 and 2 find something out for all; writes what it got to a file.

Arguments: folder, then for each of two rounds the ranks that fail in it, such as `2` or `-`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nvlm.errors import DataError, NvlmError
from nvlm.launch import launched
from nvlm.parallel.agreement import on_ranks

FINDERS = (0, 2)


def main() -> None:
    folder, rounds = Path(sys.argv[1]), sys.argv[2:]
    rank = launched().rank
    got = []
    for number, failing in enumerate(rounds):

        def find(number: int = number, failing: str = failing) -> str:
            time.sleep(0.2 * rank)
            if str(rank) in failing:
                raise DataError(f"nothing in round {number}")
            return f"found by {rank} in round {number}"

        try:
            got.append(on_ranks(FINDERS, find))
        except NvlmError as error:
            got.append(f"failed: {error}")
    (folder / f"rank{rank}").write_text("\n".join(map(str, got)))


if __name__ == "__main__":
    main()
