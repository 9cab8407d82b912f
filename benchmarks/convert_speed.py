"""Conversion beside `cp` of the same bytes: seconds, their ratio, and peak memory.

    python benchmarks/convert_speed.py --scale small       # about 2 GB
    python benchmarks/convert_speed.py                     # Qwen2-7B with InternViT-300M, 16 GB

Makes Hugging Face folders of random weights, converts them there and back in fresh processes, and
has `nvlm convert verify` compare what comes out with what went in. Every timed step starts with
files that are on disk and not in the page cache (synced, then POSIX_FADV_DONTNEED), ends with a
sync, and is timed whole: Python's start and all imports belong to the conversion's seconds. Needs
twice the bytes free on disk; everything made is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from nvlm.config import RunConfig, load_config
from nvlm.config.schema import LanguageConfig
from nvlm.convert.hf.values import language_architecture, vision_values
from nvlm.convert.rules import expected_tensors
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.qwen2 import language_rules

REPOSITORY = Path(__file__).resolve().parents[1]
BASE = REPOSITORY / "configs/run/internvit_300m_qwen2_0_5b/pretrain.yaml"
TOKENIZER = f"model.tokenizer={REPOSITORY / 'assets/tiny/qwen2'}"
QWEN2_7B = [
    "model.language.num_layers=28",
    "model.language.hidden_size=3584",
    "model.language.ffn_hidden_size=18944",
    "model.language.num_attention_heads=28",
    "model.language.num_query_groups=4",
    "model.language.vocab_size=152064",
    "model.language.share_embeddings_and_output_weights=false",
    "model.connector.ffn_hidden_size=18944",
]
OVERRIDES = {"small": [TOKENIZER], "large": [TOKENIZER, *QWEN2_7B]}
BYTES_PER_FILE = 4 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=OVERRIDES, default="large")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert_speed_") as folder:
        run(Path(folder), OVERRIDES[arguments.scale])


def run(folder: Path, overrides: list[str]) -> None:
    vision, language = folder / "vision", folder / "language"
    checkpoint, export = folder / "checkpoint", folder / "export"
    config = load_config(BASE, overrides)
    make_folders(config, vision, language)
    largest = largest_tensor_bytes(config)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"largest tensor {gigabytes(largest)}")
    print(f"memory must stay below twice that + 1.5 GB: {gigabytes(2 * largest + 1_500_000_000)}")

    from_hf = ["from-hf", "--vision", str(vision), "--language", str(language)]
    from_hf += ["--config", str(BASE), str(checkpoint), *overrides]
    # No more than two copies of the bytes are on the disk at a time.
    first = seconds_of_cp([vision, language], folder)
    seconds_from = convert(from_hf, [vision, language])
    verify(vision, checkpoint)
    verify(language, checkpoint)
    shutil.rmtree(vision)
    shutil.rmtree(language)
    second = seconds_of_cp([checkpoint], folder)
    report("from-hf", seconds_from, first, second)

    seconds_to = convert(["to-hf", str(checkpoint), str(export)], [checkpoint])
    verify(checkpoint, export)
    shutil.rmtree(checkpoint)
    report("to-hf", seconds_to, second, seconds_of_cp([export], folder))


def convert(arguments: list[str], sources: list[Path]) -> float:
    """Seconds per GB of `sources`."""
    leave_page_cache(sources)
    seconds, peak, _ = measured(nvlm(*arguments))
    print(f"{arguments[0]}: {gigabytes(num_bytes_of(sources))} in {seconds:.1f} s", end=", ")
    print(f"peak memory {gigabytes(peak)}", flush=True)
    return seconds / num_bytes_of(sources) * 1e9


def seconds_of_cp(sources: list[Path], folder: Path) -> float:
    """Seconds per GB of `sources`."""
    copy = folder / "copy"
    copy.mkdir()
    leave_page_cache(sources)
    seconds, _, _ = measured(["cp", "-r", *map(str, sources), str(copy)])
    shutil.rmtree(copy)
    print(f"cp: {gigabytes(num_bytes_of(sources))} in {seconds:.1f} s", flush=True)
    return seconds / num_bytes_of(sources) * 1e9


def verify(a: Path, b: Path) -> None:
    seconds, _, output = measured(nvlm("verify", str(a), str(b)))
    result = output.strip().splitlines()[-1]
    print(f"verify {a.name} {b.name}: {result} ({seconds:.0f} s)", flush=True)


def report(name: str, seconds: float, cp_before: float, cp_after: float) -> None:
    ratio = seconds / ((cp_before + cp_after) / 2)
    print(f"{name}: {ratio:.2f} x the seconds of cp (its mean, before and after)", flush=True)


def nvlm(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "nvlm", "convert", *arguments]


def measured(command: list[str]) -> tuple[float, int, str]:
    """Seconds until the command ended and all was on disk, peak resident bytes, its output."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
        time.sleep(0.02)
    os.sync()
    seconds = time.perf_counter() - start
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
    return seconds, peak, output


def leave_page_cache(folders: list[Path]) -> None:
    for file in files_of(folders):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def num_bytes_of(folders: list[Path]) -> int:
    return sum(file.stat().st_size for file in files_of(folders))


def files_of(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def make_folders(config: RunConfig, vision: Path, language: Path) -> None:
    """Random bf16 weights: a block of them, repeated through the tensors at changing offsets."""
    block = torch.randn(2**26, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    model = config.model
    parts = [
        (vision, vision_rules(model, model.vision.num_attention_heads),
         {"architectures": ["InternVisionModel"], **vision_values(model.vision)}),
        (language, language_rules(model), language_values(model.language)),
    ]  # fmt: skip
    for folder, rules, values in parts:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(values))
        weight_map: dict[str, str] = {}
        for number, shapes in enumerate(file_shapes(expected_tensors(rules)), start=1):
            file = f"model-{number:05d}.safetensors"
            tensors = {
                name: filled(shape, block, len(weight_map) + index)
                for index, (name, shape) in enumerate(shapes.items())
            }
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
        index = {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def file_shapes(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    pending: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for name, shape in shapes.items():
        pending[name] = shape
        num_bytes += 2 * torch.Size(shape).numel()
        if num_bytes > BYTES_PER_FILE:
            yield pending
            pending, num_bytes = {}, 0
    if pending:
        yield pending


def filled(shape: tuple[int, ...], block: torch.Tensor, number: int) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    values, position = tensor.view(-1), 0
    offset = number * 7919 % (block.numel() // 2)
    while position < values.numel():
        count = min(block.numel() - offset, values.numel() - position)
        values[position : position + count] = block[offset : offset + count]
        position += count
        offset = 0
    return tensor


def language_values(language: LanguageConfig) -> dict:
    return {
        "architectures": [language_architecture(language)],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "max_position_embeddings": language.max_position_embeddings,
        "num_attention_heads": language.num_attention_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_query_groups,
        "rms_norm_eps": language.norm_epsilon,
        "rope_theta": language.rope_base,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
        "vocab_size": language.vocab_size,
    }


def largest_tensor_bytes(config: RunConfig) -> int:
    model = config.model
    rules = [
        *vision_rules(model, model.vision.num_stored_attention_heads),
        *language_rules(model),
    ]
    return 2 * max(torch.Size(rule.shape).numel() for rule in rules)


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
