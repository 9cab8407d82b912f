"""Did each training stage leave its frozen parameters as they were, bit for bit?

    python -m demo.frozen OUT CHECKPOINT CHECKPOINT...

compares each checkpoint with the next, as they lie on disk, whatever process layout wrote them, and
writes what it found to OUT as JSON. It runs in a process of its own because it needs Megatron-core.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm import platform
from nvlm.checkpoint_io import read_config, resolve_checkpoint
from nvlm.errors import CheckpointError
from nvlm.printing import say

_OPTIMIZER_PREFIX = "optimizer."


@dataclass(frozen=True)
class FrozenComparison:
    """Names of stored weight tensors; the layers of a decoder may be stored as one tensor."""

    patterns: list[str]
    frozen: list[str]
    changed_though_frozen: list[str]
    trained: list[str]
    unchanged_though_trained: list[str]

    @property
    def holds(self) -> bool:
        """Whether there were frozen tensors and none of them changed."""
        return bool(self.frozen) and not self.changed_though_frozen


def compare_frozen(before: Path, after: Path) -> FrozenComparison:
    """Compare the weights of two checkpoints by the `stage.freeze` that `after` trained with.

    Raises:
        CheckpointError: there is no checkpoint, or the two hold other tensors.
    """
    before, after = resolve_checkpoint(before), resolve_checkpoint(after)
    patterns = read_config(after).stage.freeze
    first, second = _read_weights(before), _read_weights(after)
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise CheckpointError(f"{before} and {after} hold other tensors, such as {odd[0]}")
    equal = {name: _is_bit_equal(tensor, second[name]) for name, tensor in first.items()}
    frozen = [name for name in equal if any(fnmatchcase(name, p) for p in patterns)]
    trained = [name for name in equal if name not in frozen]
    return FrozenComparison(
        patterns=list(patterns),
        frozen=frozen,
        changed_though_frozen=[name for name in frozen if not equal[name]],
        trained=trained,
        unchanged_though_trained=[name for name in trained if equal[name]],
    )


def _read_weights(checkpoint: Path) -> dict[str, Tensor]:
    platform.current()
    from megatron.core import dist_checkpointing

    if not dist.is_initialized():
        backend = platform.current().distributed_backend()
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    tensors = dist_checkpointing.load_plain_tensors(str(checkpoint))
    return {
        name: tensor
        for name, tensor in sorted(tensors.items())
        if isinstance(tensor, Tensor) and not name.startswith(_OPTIMIZER_PREFIX)
    }


def _is_bit_equal(first: Tensor, second: Tensor) -> bool:
    """Equal bytes: unlike `torch.equal`, tells 0 from -0 and finds a NaN equal to itself."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and torch.equal(
            first.detach().contiguous().flatten().view(torch.uint8),
            second.detach().contiguous().flatten().view(torch.uint8),
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="in order of training")
    options = parser.parse_args(arguments)
    comparisons = []
    for before, after in itertools.pairwise(options.checkpoints):
        comparison = compare_frozen(before, after)
        comparisons.append(asdict(comparison))
        say(
            f"{before} -> {after}: {len(comparison.frozen)} tensors frozen by "
            f"{comparison.patterns}, {len(comparison.changed_though_frozen)} of them changed; "
            f"{len(comparison.trained)} trained, "
            f"{len(comparison.unchanged_though_trained)} of them unchanged"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(comparisons, indent=1))


if __name__ == "__main__":
    main()
