"""Programs that start with everything imported: what `python` or torchrun runs, seconds sooner.

Most of a short job's processor time is the import of torch, Megatron-core and transformers, in each
of its processes anew. A server imports them once, without running anything of them, and forks each
job from itself. A job is the same program with the same arguments, environment, folder and output;
torchrun is torch's own, and only the way in which it starts a rank is replaced.

What a job's start or death looks like from outside (a process's command line, an orphaned rank) is
for a cold start: `helpers.spawn` has both.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

# What a run, an evaluation or a conversion imports by and by.
_PRELOADED = (
    "megatron.core.tensor_parallel.random",
    "nvlm.cli",
    "nvlm.train.fit",
    "nvlm.evaluate.run",
    "nvlm.convert",
    "nvlm.convert.verify",
    "torch._dynamo",
    "torch.distributed.run",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.tokenization_qwen2",
    "pandas",
)


class Job:
    """A running program: what the tests use of `subprocess.Popen`."""

    def __init__(self, server: Server, pid: int):
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code


class Server:
    """The process that has everything imported; it ends with this one."""

    def __init__(self, environment: dict[str, str], folder: Path):
        ours, its = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.warm", str(its.fileno())],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
        )
        its.close()
        self._lines = ours.makefile("rw")

    def ask(self, question: dict[str, Any]) -> Any:
        self._lines.write(json.dumps(question) + "\n")
        self._lines.flush()
        return json.loads(self._lines.readline())

    def start(
        self,
        program: list[str],
        environment: dict[str, str],
        folder: Path,
        output: Path,
        num_processes: int = 1,
        errors: Path | None = None,
    ) -> Job:
        """`python PROGRAM…`, under torchrun where `num_processes` is more than one.

        Its output is added to the file `output`, that of stderr to `errors` where it is given.
        """
        job = {
            "program": program,
            "environment": environment,
            "folder": str(folder),
            "output": str(output),
            "errors": str(errors or output),
            "num_processes": num_processes,
        }
        return Job(self, self.ask({"start": job}))


def _serve(connection: socket.socket) -> None:
    lines = connection.makefile("rw")
    for line in lines:
        question = json.loads(line)
        if "poll" in question:
            answer = _exit_code(question["poll"])
        elif answer := os.fork():
            pass
        else:
            lines.close()
            connection.close()
            _start(**question["start"])
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _start(
    program: list[str],
    environment: dict[str, str],
    folder: str,
    output: str,
    errors: str,
    num_processes: int,
) -> NoReturn:
    os.setsid()
    # Tests in the background of a script have inherited that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, output), (2, errors)):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, number)
        os.close(stream)
    if num_processes == 1:
        _run(program)
    _fork_ranks()
    _name_methods_at_once()
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    _run([*torchrun, f"--nproc-per-node={num_processes}", *program])


def _run(program: list[str]) -> NoReturn:
    """What `python PROGRAM…` does in a new process, then the end of this one."""
    random.seed()
    try:
        if program[0] == "-m":
            sys.argv = program[1:]
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            sys.path[:0] = [str(Path(program[0]).parent)]  # as `python PROGRAM` does
            runpy.run_path(program[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


class _Rank:
    """What torchrun uses of `Popen`, for a child that was forked."""

    def __init__(self, pid: int, args: tuple[str, ...]):
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _exit_code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return Job.wait(self, timeout)  # type: ignore[arg-type]


def _name_methods_at_once() -> None:
    """torchrun's rendezvous names the method that it is in at each of its steps, for a log. For
    that it looks for the sources of all that is imported: here, over a second of each job."""
    rendezvous = importlib.import_module("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    assert rendezvous.get_method_name
    rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name


def _fork_ranks() -> None:
    """From now on torchrun forks its ranks."""
    handlers = importlib.import_module(
        "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
    )

    def start(handler: Any, args: tuple[str, ...], env: dict[str, str]) -> _Rank:
        del handler
        sys.stdout.flush()
        if pid := os.fork():
            return _Rank(pid, args)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        _run([argument for argument in args[1:] if argument != "-u"])

    handlers.SubprocessHandler._popen = start


def _preload() -> None:
    import torch

    from nvlm.megatron.known_warnings import ignore_known_warnings
    from nvlm.megatron.uncompiled_import import nothing_compiled
    from nvlm.platform import hide_unfitting_torchvision

    ignore_known_warnings()
    hide_unfitting_torchvision()
    with contextlib.nullcontext() if torch.cuda.is_available() else nothing_compiled():
        for name in _PRELOADED:
            importlib.import_module(name)


if __name__ == "__main__":
    _preload()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
