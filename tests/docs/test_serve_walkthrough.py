"""What docs/serve.md shows, run as it stands, at a port that is free, on a random tiny model."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import served
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run
from PIL import Image

from nvlm.cli.serve import serve_command
from nvlm.serve.chat_fields import ChatFields

PAGE = REPOSITORY / "docs" / "serve.md"
PORT = "8000"


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_runs(tmp_path: Path):
    environment = {**prepare(tmp_path), "PYTHONWARNINGS": "ignore"}
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    served.make_checkpoint(tmp_path / "made")
    (tmp_path / "made" / "checkpoint").rename(tmp_path / "runs" / "tiny" / "sft")
    Image.fromarray(served.noise()).save(tmp_path / "photo.png")
    port = free_port()
    blocks = [(kind, text.replace(PORT, port)) for kind, text in blocks_of(PAGE)]
    (start,) = [text for kind, text in blocks if kind == "bash" and text.startswith("nvlm serve")]
    log = tmp_path / "log"
    settings = {"cwd": tmp_path, "env": environment}
    server = subprocess.Popen(start.split(), stdout=log.open("w"), stderr=log.open("a"), **settings)
    try:
        deadline = time.monotonic() + 120
        while "address" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        outputs = {"bash": "", "python": ""}
        for kind, text in blocks:
            if kind == "bash" and text != start:
                script = f"set -euo pipefail\n{text}"
                outputs[kind] += run(["bash", "-c", script], **settings)
            elif kind == "python":
                outputs[kind] += run([sys.executable, "-c", text], **settings)
        assert '"id":"tiny-sft"' in outputs["bash"]
        assert '"object":"chat.completion"' in outputs["bash"]
        assert "CompletionUsage(completion_tokens=16" in outputs["python"]
        server.terminate()
        assert server.wait(30) == 143
    finally:
        server.kill()
        server.wait()
    # The page's own example of what is said has the lines that are said.
    (shown,) = [text for kind, text in blocks if kind == "text" and text.startswith("model ")]
    said = [line for line in log.read_text().splitlines() if line[:1].islower()]
    assert said[1:4] == shown.splitlines()[1:]
    assert said[0].split(":")[0] == shown.splitlines()[0].split(":")[0]


def test_options_and_fields_are_those_there_are():
    text = PAGE.read_text()
    limits = re.findall(r"^\| `--([a-z-]+)` \| (\S+?)[ |]", text, re.M)
    defaults = {name.replace("_", "-"): f"{value:,g}" for name, value in _numbers().items()}
    assert {name: value for name, value in limits if value != "the"} == defaults
    for name in ChatFields.model_fields:
        assert f"`{name}" in text, name


def _numbers() -> dict[str, float]:
    import inspect

    parameters = inspect.signature(serve_command).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name.startswith(("max_", "timeout_")) and parameter.default is not None
    }
