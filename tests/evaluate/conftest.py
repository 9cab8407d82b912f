"""The shards of tests/data, the small model of tests/model and its checkpoints serve here too."""

import sys
from pathlib import Path

for folder in ("data", "model", "generate"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))
