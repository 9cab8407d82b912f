"""Writes samples whose text is more or less right, for the grid alignment_tiny.

    python -m demo.aligned_sheets ROOT [--seed 0]

Three tiles with a handwritten digit each, and an answer that is to read them in order. Of a quarter
of the samples each it is right about none, one, two and all three, and says so (`alignment_level`
0 to 3): what CLIP's score is for captions of the web. Written to ROOT/train/aligned; the same seed
writes the same bytes. The second stage's questions are those of demo.tile_sheets.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import webdataset

from demo import scenes
from nvlm.files import folder_beside
from nvlm.printing import say

SOURCE = "aligned"
NUM_SAMPLES = 800
NUM_TILES = 3


def write_aligned_sheets(root: Path, seed: int = 0, num_samples: int = NUM_SAMPLES) -> Path:
    """Write ROOT/train/aligned/aligned-000000.tar, which replaces what is there; returns it."""
    rng = np.random.default_rng([seed, zlib.crc32(SOURCE.encode())])
    folder = root / "train" / SOURCE
    with (
        folder_beside(folder) as beside,
        webdataset.TarWriter(str(beside / f"{SOURCE}-000000.tar"), encoder=False, mtime=0) as tar,
    ):
        for number in range(num_samples):
            level = number % (NUM_TILES + 1)
            sheets = [scenes.sheet_scene(rng, "train", (1, 1)) for _ in range(NUM_TILES)]
            shown = [digits[0][0] for _, digits in sheets]
            is_right = rng.permutation(NUM_TILES) < level
            said = [
                digit if right else (digit + int(rng.integers(1, 10))) % 10
                for digit, right in zip(shown, is_right, strict=True)
            ]
            question = "<image>\n" * NUM_TILES + "Read all digits in order."
            content = {
                "id": f"train-{SOURCE}-{number:05d}",
                "task": SOURCE,
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "".join(map(str, said))},
                ],
                "alignment_level": level,
                "digits": shown,
            }
            images = {
                f"{place}.png": scenes.encode(scene.draw(), "png")
                for place, (scene, _) in enumerate(sheets)
            }
            text = json.dumps(content).encode()
            tar.write({"__key__": content["id"], "json": text, **images})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    say(f"{NUM_SAMPLES} samples in {write_aligned_sheets(arguments.root, arguments.seed)}")


if __name__ == "__main__":
    main()
