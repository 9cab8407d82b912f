"""The folder of a process's and its workers' sockets goes with the last of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

START = """
import sys, time
from nvlm.socket_folder import make_socket_folder
print(make_socket_folder(), flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
"""


def start(temporary: Path, how: str) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, how],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_with_its_process_or_with_the_next(tmp_path: Path):
    killed, left = start(tmp_path, "wait")
    living, kept = start(tmp_path, "wait")
    try:
        assert left.is_dir() and kept.is_dir()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        (tmp_path / "nvlm-of-others").mkdir()
        ended, own = start(tmp_path, "end")
        assert ended.wait(30) == 0
        assert own != kept
        assert sorted(tmp_path.iterdir()) == sorted([kept, tmp_path / "nvlm-of-others"])
    finally:
        living.kill()
        living.wait()


BETWEEN = """
import os, signal
from contextlib import closing
from multiprocessing import get_context
from nvlm.socket_folder import make_socket_folder
from nvlm.workers import map_forked

folder = make_socket_folder()
reader, writer = os.pipe()  # written by nobody: read to its end when all forked processes are gone

def work(item):
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()

def between():
    with closing(map_forked(work, [1, 2], 2, "a test")) as results:
        list(results)

process = get_context("fork").Process(target=between)
process.start()
process.join()
os.close(writer)
os.read(reader, 1)
print(process.exitcode, folder.is_dir())
"""


def test_it_outlives_a_process_in_between(tmp_path: Path):
    """A process that has workers of its own is killed; the one that it is of goes on."""
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["-9", "True"]
    assert not list(tmp_path.iterdir())
