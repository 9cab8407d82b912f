"""A hub on this machine, for the hub's own client: folders, served as repositories are."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """`models/OWNER/NAME` -> {revision: folder}; the first revision is `main`."""

    url: str
    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)  # paths, in order

    def add(self, name: str, folder: Path, revision: str = "main", kind: str = "models") -> str:
        """Serve `folder`; returns its commit."""
        self.repositories.setdefault(f"{kind}/{name}", {})[revision] = folder
        return commit_of(folder)


def commit_of(folder: Path) -> str:
    digest = hashlib.sha1(str(folder).encode())
    return digest.hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            parts = path.strip("/").split("/")
            if parts[:1] == ["api"] and len(parts) < 4:
                self._send(404, b"", {})  # nothing of a repository
                return
            if parts[0] == "api":
                kind, owner, name, what, revision, *_ = [*parts[1:], "", "", ""]
                self._describe(f"{kind}/{owner}/{name}", what, revision or "main")
                return
            kind = "models"
            if parts[0] == "datasets":
                kind, parts = "datasets", parts[1:]
            owner, name, _, revision, *file = parts
            folder = self._find(f"{kind}/{owner}/{name}", revision)
            if folder is None:
                return
            target = folder / "/".join(file)
            if not target.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = target.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(folder)})

        def _find(self, repository: str, revision: str) -> Path | None:
            if repository in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
                return None
            revisions = hub.repositories.get(repository)
            if revisions is None:
                self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            by_commit = {commit_of(folder): folder for folder in revisions.values()}
            folder = revisions.get(revision) or by_commit.get(revision)
            if folder is None:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return folder

        def _describe(self, repository: str, what: str, revision: str) -> None:
            folder = self._find(repository, revision)
            if folder is None:
                return
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if what == "tree":
                answer: object = [
                    {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}
                    for path, name in zip(files, names)
                ]
            else:
                answer = {
                    "id": repository.partition("/")[2],
                    "sha": commit_of(folder),
                    "siblings": [{"rfilename": name} for name in names],
                }
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
