"""An environment of its own for each client, kept between runs.

It sees what is installed in this one (torch above all, which is large), and holds only what the
client needs beyond that or at another version: pip sees both, and installs the difference.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from helpers.paths import REPOSITORY

from clients.client import Client

FOLDER = Path(sys.prefix) / "clients"


class CannotInstall(Exception):
    """pip could not install a client; the message is what it said last."""


def install(client: Client) -> Path:
    """The client's Python, with the newest release of what it asks for.

    Raises:
        CannotInstall: pip failed, as without a network.
    """
    folder = FOLDER / client.name.replace(" ", "-")
    python = folder / "bin" / "python"
    beside = Path(sysconfig.get_path("purelib"))
    listed = f"{beside}\n"
    link = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = link / "site-packages" / "beside.pth"
    if not python.exists() or not link.exists() or link.read_text() != listed:
        command = [sys.executable, "-m", "venv", "--clear", "--without-pip", folder]
        subprocess.run(command, check=True)
        link.write_text(listed)
    # torch stays the one that is here, whatever the client would take.
    (folder / "constraints.txt").write_text(f"torch=={version('torch')}\n")
    if client.requirements:
        _pip(python, ["--upgrade", "-c", folder / "constraints.txt", *client.requirements])
    if client.without_dependencies:
        _pip(python, ["--upgrade", "--no-deps", *client.without_dependencies])
    if client.needs_nvlm:
        _pip(python, ["--no-deps", "--no-build-isolation", "--editable", REPOSITORY])
    return python


def installed_version(python: Path, distribution: str) -> str:
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _pip(python: Path, arguments: list) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    command += ["--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotInstall(done.stderr.strip()[-2000:])
