"""Rewrite the golden losses of the single-process tiny SFT run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from test_layouts import GOLDEN, train_tiny

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build = [sys.executable, "-m", "nvlm", "data", "build-demo", str(data)]
        subprocess.run(build, check=True)
        records = train_tiny(Path(folder) / "run", data, 1, [])
    keys = ("step", "loss", "grad_norm", "tokens", "tiles", "samples")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(json.dumps({k: r[k] for k in keys}) + "\n" for r in records))
