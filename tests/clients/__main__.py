"""Run clients on exports, print what was compared, and write docs/compatibility.md.

    scripts/test --clients             every client
    scripts/test --clients NAME ...    some; the page keeps what was found of the others
    scripts/test --clients --list      their names

Ends with 1 if anything differs or could not be installed; such a client's row on the page is only
replaced by one that ran. One that needs a checkout which is not here is left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clients import page
from clients.client import Client, ClientFailed, Comparison, NotHere, Trial
from clients.environments import CannotInstall, install, installed_version
from clients.exports import Exports

CLIENT_FILES = ("transformers_releases", "lm_eval", "lmms_eval", "vlmevalkit", "vllm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test --clients", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="of clients; none: all of them")
    parser.add_argument("--list", action="store_true", help="print the names of clients")
    options = parser.parse_args()
    clients = {client.name: client for client in all_clients()}
    if options.list:
        print("\n".join(clients))
        return 0
    if unknown := [name for name in options.names if name not in clients]:
        parser.error(f"no client {unknown[0]!r}; there are {', '.join(map(repr, clients))}")
    chosen = [clients[name] for name in options.names or clients]
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        exports = Exports(Path(folder))
        results = [_try(client, exports) for client in chosen]
    page.write()
    return 0 if all(results) else 1


def all_clients() -> list[Client]:
    modules = [importlib.import_module(f"clients.{name}") for name in CLIENT_FILES]
    return [client for module in modules for client in module.CLIENTS]


def _try(client: Client, exports: Exports) -> bool:
    """Install, run and compare; whether all is equal."""
    print(f"== {client.name}: installing", flush=True)
    try:
        version = client.version() if client.version else None
        python = install(client)
    except NotHere as error:
        print(f"{client.name} is left out: {error}", flush=True)
        return True
    except CannotInstall as error:
        print(f"{client.name} could not be installed:\n{error}", flush=True)
        return False
    version = version or installed_version(python, client.distribution)
    print(f"== {client.name}: {client.distribution} {version}", flush=True)
    folder = exports.folder / f"trial-{client.name.replace(' ', '-')}"
    folder.mkdir()
    try:
        comparisons = client.compare(Trial(python, exports, folder))
    except ClientFailed as error:
        print(error, flush=True)
        comparisons = [Comparison("runs", str(error).splitlines()[-1], False)]
    assert comparisons, client.name
    page.keep(client.name, client.distribution, version, date.today().isoformat(), comparisons)
    _print(client, version, comparisons)
    return all(comparison.is_equal for comparison in comparisons)


def _print(client: Client, version: str, comparisons: list[Comparison]) -> None:
    table = Table("client", "version", "compared", "found", "")
    for comparison in comparisons:
        verdict = "" if comparison.is_equal else "DIFFERS"
        table.add_row(client.name, version, comparison.what, comparison.found, verdict)
    Console(width=140).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
