"""Which packages opening an index imports: a run waits for them before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvlm.config import save_config

PROGRAM = """
import sys
from nvlm.config import load_config
from nvlm.data.index.source_index import open_indexes

config = load_config(sys.argv[1])
open_indexes(config)
assert "pyarrow" in sys.modules and "pandas" not in sys.modules
import pandas, pyarrow
frame = pandas.DataFrame({"a": [1.5, 2.5]})
assert pyarrow.Table.from_pandas(frame).to_pandas().equals(frame)
"""


def test_pandas_is_not_imported_and_works_afterwards(make_config, shards: Path, tmp_path: Path):
    pytest.importorskip("pandas")
    save_config(make_config(f"data.index_dir={tmp_path / 'index'}"), tmp_path / "config.yaml")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "config.yaml")]
    subprocess.run(command, check=True, timeout=120)


def test_an_index_that_is_there_needs_no_arrow(make_config, shards: Path, tmp_path: Path):
    save_config(make_config(f"data.index_dir={tmp_path / 'index'}"), tmp_path / "config.yaml")
    program = (
        "import sys\n"
        "from nvlm.config import load_config\n"
        "from nvlm.data.index.source_index import open_indexes\n"
        "assert open_indexes(load_config(sys.argv[1]))\n"
        "sys.exit(10 * ('pyarrow' in sys.modules))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "config.yaml")]
    assert [subprocess.run(command, timeout=120).returncode for _ in range(2)] == [10, 0]
