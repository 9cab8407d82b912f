"""What ends a verb becomes one line and an exit code; faults of our own keep their trace."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from nvlm import failures
from nvlm.errors import ConfigError, DataError, TrainingError
from nvlm.failures import CANNOT_GO_ON, FAULT_OF_NVLM, INTERRUPTED, end, explain


def raised_by(action) -> BaseException:
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


def test_system_errors_name_path_cause_and_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    errors = {
        "Is a directory": raised_by(lambda: tmp_path.open()),
        "Not a directory": raised_by(lambda: (tmp_path / "file" / "below").mkdir()),
        "No such file": raised_by(lambda: (tmp_path / "none").open()),
        "File name too long": raised_by(lambda: (tmp_path / ("n" * 300)).open()),
        "No space left": raised_by(lambda: Path("/dev/full").write_bytes(b"x")),
    }
    for expected, error in errors.items():
        message = explain(error)
        assert message is not None
        assert expected in message
        assert ": " in message.partition(expected)[2]  # a remedy
        assert str(tmp_path) in message or expected == "No space left"


def test_bytes_that_are_not_text_name_their_file(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    message = explain(raised_by(lambda: path.read_text(encoding="utf-8")))
    assert message == f"{path}: not UTF-8 text: byte 2 is 0xef"


def test_errors_of_libraries():
    from torch import OutOfMemoryError
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.checkpoint.api import CheckpointException

    full = OSError(errno.ENOSPC, "No space left on device", "/data/step_1/__3_0.distcp")
    reader = "DataLoader worker (pid 7) is killed by signal: Killed. "
    causes = {
        "/data/step_1/__3_0.distcp: No space left": CheckpointException("write", {3: (full, None)}),
        "accelerator memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        "not enough memory": RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 80 bytes."
        ),
        "choose another": DistNetworkError("The server socket has failed to listen: EADDRINUSE"),
        "to another process of the run": DistStoreError("wait timeout after 300000ms"),
        "connection to another process": RuntimeError("[..] Connection closed by peer [::1]:2"),
        "fewer data.num_workers": RuntimeError(reader),
        "another process of the run failed": RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Terminated. "
        ),
        "the disk is full": RuntimeError(
            "Worker failure: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
        ),
        "/data/x.distcp: File too large: the file system": RuntimeError(
            "Worker failure: [Errno 27] File too large: '/data/x.distcp'"
        ),
        "was killed": BrokenProcessPool("terminated abruptly"),
        "nvlm[mlflow]": ModuleNotFoundError("No module named 'mlflow'", name="mlflow"),
        "nvlm[wandb]": ModuleNotFoundError("No module named 'wandb'", name="wandb"),
        "scripts/install": ModuleNotFoundError("No module named 'rich.x'", name="rich.x"),
        "/dev/shm": RuntimeError(
            "unable to write to file </torch_1>: No space left on device (28)"
        ),
        "ulimit -n": RuntimeError("received 0 items of ancdata"),
        "memory": MemoryError(),
    }
    for expected, error in causes.items():
        message = explain(error)
        assert message is not None, error
        assert expected in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("x"), TypeError("x"), KeyError("x"), AttributeError("x"),
        RuntimeError("shapes differ"), ValueError("x"),
        ModuleNotFoundError("No module named 'nvlm.nowhere'", name="nvlm.nowhere"),
    ],
)  # fmt: skip
def test_our_own_faults_keep_their_trace(error, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise error

    assert end(raised_by(fail)) == FAULT_OF_NVLM
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "please report it" in printed


def test_lines_and_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert end(DataError("shard \x1b[2J\nis broken")) == CANNOT_GO_ON
    assert capsys.readouterr().err == "error: shard \\x1b[2J\\nis broken\n"
    assert end(KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert end(TrainingError("step 2\n  micro-batch 0: \x1b[2J\n  saved")) == 2
    assert capsys.readouterr().err == "error: step 2\n  micro-batch 0: \\x1b[2J\n  saved\n"
    several = ConfigError("a.yaml: train.steps\n", "a.yaml: train.seed")
    assert end(several) == CANNOT_GO_ON
    assert capsys.readouterr().err == "error: a.yaml: train.steps\\n\nerror: a.yaml: train.seed\n"
    assert str(pickle.loads(pickle.dumps(several))) == "a.yaml: train.steps\n; a.yaml: train.seed"
    monkeypatch.setenv("RANK", "3")
    assert end(several) == CANNOT_GO_ON
    assert capsys.readouterr().err.count(" [rank 3]\n") == 2
    assert end(KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr().err == ""


def test_each_thing_is_said_by_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With the store that torchrun keeps at MASTER_PORT; four ranks in turn."""
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in (2, 0, 1, 3):
        monkeypatch.setenv("RANK", str(rank))
        assert end(DataError("the same")) == CANNOT_GO_ON
    assert capsys.readouterr().err == "error: the same [rank 2]\n"
    assert end(DataError("its own")) == CANNOT_GO_ON
    assert capsys.readouterr().err == "error: its own [rank 3]\n"
    del store
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    assert end(DataError("without a store")) == CANNOT_GO_ON
    assert capsys.readouterr().err == "error: without a store [rank 3]\n"


def test_who_only_lost_another_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Where that one said why; else one of those that lost it speaks. torchrun hears of both."""
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(failures, "_SECONDS_TO_HEAR", 0.1)

    def end_as(rank: int, attempt: int, error: Exception) -> str:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{attempt}-{rank}.json"))
        assert end(error) == CANNOT_GO_ON
        return capsys.readouterr().err

    own = DataError("its own")
    own.add_note("in step 7")
    assert end_as(1, 0, own) == "error: its own [rank 1]\n  in step 7\n"
    lost = [RuntimeError(f"Connection closed by peer [::1]:{rank}") for rank in range(4)]
    assert end_as(0, 0, lost[0]) == ""
    assert "or torchrun's summary says" in end_as(2, 1, lost[2])
    assert end_as(3, 1, lost[3]) == ""
    records = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    messages = {name: record["message"]["message"] for name, record in records.items()}
    assert messages["0-1.json"] == "its own [rank 1]\n  in step 7"
    assert messages["0-0.json"] == "rank 1 ended before: its own"
    assert messages["1-3.json"].startswith("rank 2 ended before: the connection")
    times = [int(r["message"]["extraInfo"]["timestamp"]) for r in records.values()]
    names = list(records)
    assert times[names.index("0-1.json")] < times[names.index("0-0.json")]


def test_a_reader_that_is_gone(capfd: pytest.CaptureFixture[str]):
    read, write = os.pipe()
    os.close(read)
    error = raised_by(lambda: os.write(write, b"x"))
    os.close(write)
    assert isinstance(error, BrokenPipeError)
    saved = os.dup(1)
    try:
        assert end(error) == 141
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr().err == ""
