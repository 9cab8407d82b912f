"""The data of alignment_tiny: each answer is right about as many digits as its level says."""

from __future__ import annotations

import json
import tarfile

from demo.aligned_sheets import NUM_TILES, write_aligned_sheets


def test_levels_are_how_much_of_the_answer_is_right(tmp_path):
    one, other = (write_aligned_sheets(tmp_path / name, num_samples=8) for name in "ab")
    (shard,), (again,) = (sorted(folder.glob("*.tar")) for folder in (one, other))
    assert shard.read_bytes() == again.read_bytes()
    levels = []
    with tarfile.open(shard) as archive:
        for member in archive:
            if not member.name.endswith(".json"):
                continue
            content = json.load(archive.extractfile(member))  # type: ignore[arg-type]
            question, answer = (message["content"] for message in content["messages"])
            assert question.count("<image>") == len(content["digits"]) == NUM_TILES
            said = [int(digit) for digit in answer]
            right = sum(a == b for a, b in zip(said, content["digits"], strict=True))
            assert right == content["alignment_level"]
            levels.append(right)
    assert sorted(levels) == sorted([*range(NUM_TILES + 1)] * 2)
