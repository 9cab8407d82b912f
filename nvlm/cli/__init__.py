"""The command line. Every verb is thin and imports what it needs when it runs."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import Any

import typer

from nvlm.cli.app import Ended, app
from nvlm.ending import become_program, leave
from nvlm.errors import ConfigError
from nvlm.failures import end
from nvlm.megatron.known_warnings import ignore_known_warnings
from nvlm.parallel.orphans import end_with_launcher
from nvlm.parallel.signals import stop_on_signals
from nvlm.printing import forgive_encoding, say
from nvlm.reports import hold_store

# Each adds its verbs, in the order of the help text.
from nvlm.cli import doctor, look, plan, run, ablate, generate, evaluate, serve  # noqa: F401  # isort: skip
from nvlm.cli import report, demo, data, convert  # noqa: F401  # isort: skip

__all__ = ["app", "main", "run_app"]

# More than any run needs; some programs walk over all that are allowed.
_MAX_OPEN_FILES = 65536
# Wrong options and arguments, which typer prints in four lines.
_UsageError: Any = typer.BadParameter.__bases__[0]


def run_app() -> int:
    """The verb that the command line names; what is wrong with its arguments in one line.

    Returns:
        the exit code.
    """
    try:
        return app(prog_name="nvlm", standalone_mode=False) or 0
    except _UsageError as error:
        message = error.format_message().replace(": Input should", ": should")
        if "\n" in message:  # nothing was given, and this is the help text
            say(message, sys.stderr)
            return 2
        verb = error.ctx.command_path if error.ctx else "nvlm"
        hint = "" if "Did you mean" in message else f"; see `{verb} --help`"
        raise ConfigError(f"{verb}: {message[0].lower()}{message[1:].rstrip('.')}{hint}") from None


def _allow_more_files() -> None:
    """As many open files as the system lets this user have: 1,024 are soon used up by processes
    that exchange tensors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Entry point: what ends a verb becomes a line on stderr and an exit code (failures.py)."""
    ignore_known_warnings()
    forgive_encoding()
    _allow_more_files()
    become_program()
    stop_on_signals()
    end_with_launcher()
    try:
        try:
            code = run_app()
        finally:
            sys.stdout.flush()
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    except Ended as ended:
        code = end(ended.error)
    except BaseException as error:
        code = end(error)
    if code and _has_process_groups():
        hold_store()
        leave(code)
    sys.exit(code)


def _has_process_groups() -> bool:
    """Whether others may wait for this process: they are left after success only."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()
