"""`python -m nvlm.evaluate CHECKPOINT DATA_ROOT OUT`, alone or under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nvlm.errors import NvlmError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="nvlm.evaluate", description="Accuracy of a checkpoint on held-out samples."
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint or run folder")
    parser.add_argument("data_root", type=Path, help="folder with SPLIT/SOURCE/*.tar")
    parser.add_argument("out", type=Path, help="JSON lines to write")
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--limit-per-task", type=int, help="at most this many samples of a task")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline-parallel size")
    options = parser.parse_args()
    from nvlm.evaluate.run import evaluate_checkpoint, print_scores

    is_main = os.environ.get("RANK", "0") == "0"
    try:
        scores = evaluate_checkpoint(**vars(options))
    except NvlmError as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if is_main:
        print_scores(scores)


if __name__ == "__main__":
    main()
