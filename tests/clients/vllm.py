"""vLLM on an export: the token ids that it feeds, its loader, and its model class on a CPU.

Its release is built for GPUs: programs/vllm_prompts.py says where torch stands in for kernels, and
it is installed without what only GPUs need. torch stays the one that is here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from helpers import export_runs, vllm_prompts
from helpers.paths import REPOSITORY
from helpers.qwen_tokenizer import build_qwen_tokenizer
from PIL import Image

from clients.client import Client, Comparison, Trial, equal_rows

PROGRAMS = Path(__file__).parent / "programs"
# Logits and losses in float32: sums in another order differ by so much.
CLOSE = 1e-4
TILE_SIZE = 112
# Qwen's own vocabulary, seven zero heads, and the projector's epsilon that vLLM computes with.
OVERRIDES = [
    "model.vision.num_stored_attention_heads=12",
    "model.connector.norm_epsilon=1e-5",
    "model.language.vocab_size=152064",
    "model.image_token=<|vision_pad|>",
    "stage.sequence_length=4096",
]
# What vLLM imports, beyond what is installed beside it.
IMPORTED = (
    "anthropic", "apache-tvm-ffi", "astor", "blake3", "cachetools", "cbor2", "compressed-tensors",
    "depyf", "einops", "gguf", "ijson", "lark", "llguidance", "loguru", "mcp", "mistral_common",
    "msgspec", "openai", "openai-harmony", "orjson", "oss-harmony", "partial-json-parser",
    "prometheus_client", "py-cpuinfo", "pybase64", "python-json-logger", "pyzmq", "setproctitle",
    "uvloop", "watchfiles", "xgrammar",
)  # fmt: skip


def compare(trial: Trial) -> list[Comparison]:
    folder = trial.folder / "model"
    build_qwen_tokenizer().save_pretrained(folder / "qwen")
    made = export_runs.make_export(folder, [*OVERRIDES, f"model.tokenizer={folder / 'qwen'}"])
    asked = _write_prompts(trial.folder)
    out = trial.folder / "vllm.json"
    trial.run(
        [PROGRAMS / "vllm_prompts.py", made.export, asked / "vllm.json", out],
        PYTHONPATH=str(PROGRAMS / "vllm_on_cpu"),
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
    )
    found = json.loads(out.read_text())
    megatron = _megatron(made.checkpoint, asked / "training.json", trial.folder)
    fed = {
        name: prompt.get("ids", prompt.get("refused")) for name, prompt in found["prompts"].items()
    }
    installed = trial.run(["-c", "from importlib.metadata import version; print(version('vllm'))"])
    vllm_prompts.write_rows({f"{installed.strip()} block": fed})
    return _comparisons(found, fed, megatron)


def _comparisons(found: dict, fed: dict, megatron: dict) -> list[Comparison]:
    spelled = vllm_prompts.CONTROL_TOKEN
    trained = {name: row["ids"] for name, row in megatron.items() if name != spelled}
    chat = {name: found["prompts"][name].get("chat") for name in megatron}
    errors = [row["error"] for row in found["prompts"].values() if "error" in row]
    losses = [
        abs(found["prompts"][name]["loss"] - row["loss"])
        for name, row in megatron.items()
        if name in trained and fed[name] == row["ids"]
    ]
    missing = found["weights"]["missing"]
    return [
        equal_rows("chat endpoint: token ids of training", trained, fed),
        equal_rows("`chat` of the export: token ids of training", _ids(megatron), chat),
        Comparison(
            "a spelled control token becomes the token",
            "so" if fed[spelled] != megatron[spelled]["ids"] else "no longer: docs/serving.md",
            fed[spelled] != megatron[spelled]["ids"],
        ),
        Comparison(
            "model class: every tensor is read",
            f"{found['weights']['tensors']} tensors; left without: {', '.join(missing) or 'none'}",
            not missing,
        ),
        _close("model class on CPU: logits against transformers", errors, len(fed)),
        _close("model class on CPU: loss of prompts against Megatron-core", losses, len(trained)),
    ]


def _ids(rows: dict) -> dict:
    return {name: row["ids"] for name, row in rows.items()}


def _close(what: str, errors: list[float], number: int) -> Comparison:
    found = f"{sum(error < CLOSE for error in errors)} of {number} equal"
    largest = f" (to {max(errors):.0e})" if errors else ""
    return Comparison(what, found + largest, len(errors) == number and max(errors) < CLOSE)


def _write_prompts(folder: Path) -> Path:
    """The prompts with pictures for their grids: as a user asks, and with marks as in training."""
    asked = {"vllm": {}, "training": {}}
    for name, turns in vllm_prompts.PROMPTS.items():
        images = [[_picture(folder, *grid) for grid in turn["grids"]] for turn in turns]
        for form, messages in (("vllm", turns), ("training", vllm_prompts.messages(turns))):
            asked[form][name] = [
                {"role": turn["role"], "content": turn["content"], "images": files}
                for turn, files in zip(messages, images)
            ]
    for form, prompts in asked.items():
        (folder / f"{form}.json").write_text(json.dumps(prompts))
    return folder


def _picture(folder: Path, columns: int, rows: int) -> str:
    file = folder / f"{columns}x{rows}.png"
    size = (columns * TILE_SIZE, rows * TILE_SIZE)
    red, green = Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size)
    Image.merge("RGB", [red, green, red.transpose(Image.Transpose.ROTATE_180)]).save(file)
    return str(file)


def _megatron(checkpoint: Path, asked: Path, folder: Path) -> dict:
    out = folder / "megatron.json"
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("megatron_losses.py")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, checkpoint, asked, out], env=environment, check=True)
    return json.loads(out.read_text())


def _torchvision() -> str:
    """The release for the torch that is here: 0.28 for 2.13, and so on."""
    minor = int(version("torch").split(".")[1])
    return f"torchvision==0.{minor + 15}.*"


CLIENTS = [
    Client("vllm", (), "vllm", compare, without_dependencies=("vllm", _torchvision(), *IMPORTED))
]
