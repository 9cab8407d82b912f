"""Run as a program by test_streaming: converts both ways and prints what memory each way took.

    measure_memory FOLDER

Prints JSON: bytes of the largest tensor, and the peaks above what imports take. Then converts once
more, to FOLDER/killed, for the test to interrupt. The first run makes the Hugging Face folders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from helpers import small_folders

# Two large matrices, and little else.
LARGE = ["model.language.vocab_size=65536", "model.language.hidden_size=768",
         "model.language.num_attention_heads=6", "model.language.num_query_groups=2",
         "model.language.num_layers=1", "model.vision.num_layers=1",
         "train.precision=bf16"]  # fmt: skip


def resident_bytes(field: str) -> int:
    """`VmRSS`: resident now; `VmHWM`: most since the last `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def make_language_folder(folder: Path, config) -> None:
    """bf16, of values that cost nothing to draw."""
    from safetensors.torch import save_file

    from nvlm.convert.rules import expected_tensors
    from nvlm.convert.tables.qwen2 import language_rules

    small_folders.make_language_folder(folder, config)
    shapes = expected_tensors(language_rules(config.model))
    tensors = {
        name: torch.arange(torch.Size(shape).numel(), dtype=torch.int32)
        .remainder_(251 + number)
        .bfloat16()
        .view(shape)
        for number, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, folder / "model.safetensors")


def main() -> None:
    folder = Path(sys.argv[1])
    config, small_config = small_folders.convert_config(*LARGE), small_folders.convert_config()
    vision, language = folder / "vision", folder / "language"
    if not language.exists():
        small_folders.make_vision_folder(vision, config)
        make_language_folder(language, config)
        small_folders.make_vision_folder(folder / "small" / "vision", small_config)
        small_folders.make_language_folder(folder / "small" / "language", small_config)
        return

    from nvlm import platform
    from nvlm.convert import convert_from_hf, convert_to_hf

    platform.current()
    # Once with a small model: what is imported and set up by then does not depend on the model.
    small = folder / "small"
    convert_from_hf(small / "vision", small / "language", small_config, small / "checkpoint")
    convert_to_hf(small / "checkpoint", small / "export")

    def peak_of(convert) -> int:
        forget_peak()
        before = resident_bytes("VmRSS")
        convert()
        return resident_bytes("VmHWM") - before

    from_hf = peak_of(lambda: convert_from_hf(vision, language, config, folder / "checkpoint"))
    to_hf = peak_of(lambda: convert_to_hf(folder / "checkpoint", folder / "export"))
    largest = 2 * config.model.language.vocab_size * config.model.language.hidden_size
    print(json.dumps({"largest": largest, "from_hf": from_hf, "to_hf": to_hf}), flush=True)
    while True:
        convert_from_hf(vision, language, config, folder / "killed")
        print("survived", flush=True)


if __name__ == "__main__":
    main()
