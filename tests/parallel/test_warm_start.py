"""What the tests start warm does what the same program does when it is started from nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import spawn
from helpers.paths import REPOSITORY

PROGRAM = """
import atexit, json, os, sys, time
from pathlib import Path

rank = os.environ.get("RANK", "0")
names = ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "OMP_NUM_THREADS")
seen = {
    "arguments": sys.argv,
    "name": __name__,
    "folder": os.getcwd(),
    "path": sys.path[0],
    "environment": {name: os.environ.get(name) for name in names},
    "leads_its_group": os.getpgid(0) == os.getpid(),
}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(seen))
atexit.register(lambda: Path(sys.argv[1], f"{rank}.ended").touch())
print("printed by rank", rank, flush=True)
Path(sys.argv[1], f"{rank}.printed").touch()
while len(list(Path(sys.argv[1]).glob("*.printed"))) < int(os.environ.get("WORLD_SIZE", "1")):
    time.sleep(0.01)  # torchrun ends all when one has failed
sys.exit(int(sys.argv[2]) if rank == "1" or "RANK" not in os.environ else 0)
"""


@pytest.mark.parallel
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("code", [0, 3])
def test_warm_programs_do_what_cold_ones_do(num_processes, code, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = []
    for start in ("cold", "warm"):
        out, log = tmp_path / start, tmp_path / f"{start}.log"
        out.mkdir()
        arguments = [program, out, str(code)]
        if start == "warm":
            ended = spawn.run_program(num_processes, *arguments, log=log)
        else:
            torchrun = ["-m", "torch.distributed.run", "--standalone"]
            launcher = [*torchrun, f"--nproc-per-node={num_processes}"] * (num_processes > 1)
            with log.open("w") as file:
                ended = subprocess.run(
                    [sys.executable, *launcher, *arguments],
                    env=spawn.environment(),
                    cwd=REPOSITORY,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    timeout=120,
                ).returncode
        printed = sorted(
            line for line in log.read_text().splitlines() if line.startswith("printed by rank")
        )
        seen = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
        for one in seen.values():
            assert one["arguments"].pop(1) == str(out)
        found.append((ended, printed, seen, "ChildFailedError" in log.read_text()))
        if code == 0:
            assert len(list(out.glob("*.ended"))) == num_processes
    assert found[0] == found[1]
    assert found[0][0] == (code if num_processes == 1 else min(code, 1))
