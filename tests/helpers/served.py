"""A real `nvlm serve` process on this machine, and what tests send to it."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray
from PIL import Image

from helpers import generate_case, small_model, spawn, warm
from nvlm.parallel.groups import initialize, shut_down

MODEL = "tiny-sft"
_SECONDS_TO_START = 120


@dataclass
class Served:
    url: str  # without /v1
    log: Path
    job: warm.Job

    def client(self, key: str = "any", **settings: Any) -> openai.OpenAI:
        """OpenAI's own; it sends once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **settings)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        os.kill(self.job.pid, number)
        return self.job.wait(30)


def make_checkpoint(folder: Path, *overrides: str) -> Path:
    """A small random model whose answers differ from each other."""
    config = small_model.small_config("model.language.init_std=0.2", *overrides)
    target = folder / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@contextmanager
def serving(
    checkpoint: Path, folder: Path, *options: str, num_processes: int = 1
) -> Iterator[Served]:
    """`nvlm serve CHECKPOINT OPTIONS` at a free port, until the block is left."""
    log = folder / "serve.log"
    program = ("-m", "nvlm", "serve", checkpoint, "--port", "0", *options)
    job = spawn.start_warm(num_processes, *program, log=log)
    try:
        yield Served(_address(job, log), log, job)
    finally:
        spawn.kill(job)


def _address(job: warm.Job, log: Path) -> str:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        printed = log.read_text() if log.exists() else ""
        if found := re.search(r"^address +(\S+)/v1 ", printed, re.M):
            return found[1]
        assert job.poll() is None, printed
        time.sleep(0.05)
    raise AssertionError(f"did not start\n{log.read_text()}")


def noise(width: int = 300, height: int = 150, seed: int = 0) -> NDArray[np.uint8]:
    """[height, width, 3] RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def data_url(pixels: NDArray[np.uint8]) -> str:
    """As PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return url_of_bytes(buffer.getvalue())


def url_of_bytes(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_bomb(width: int, height: int) -> bytes:
    """Gray zeros: a thousandth of the bytes that they decode to."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    chunks = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*parts: Any) -> dict[str, Any]:
    """A user's message: a text, or parts."""
    is_text = len(parts) == 1 and isinstance(parts[0], str)
    return {"role": "user", "content": parts[0] if is_text else list(parts)}
