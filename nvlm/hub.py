"""Folders of the Hugging Face hub, by id, where a folder of this machine is taken.

`OWNER/NAME` or `OWNER/NAME@REVISION` (a branch, a tag or a commit) is looked up where no such path
is here. What is fetched lies in the hub's own cache (`HF_HOME`), which other programs share, and is
of one commit, which is said and returned. Nothing of it is run. This file imports no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nvlm.errors import DataError, NvlmError
from nvlm.printing import printable, say

# A name of the hub: two parts of letters, digits, `-`, `_` and `.`.
_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# What a model's folder is opened with: never code, nor weights that are pickled.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Folder:
    """A folder to read, and where it came from."""

    path: Path
    repository: str | None = None  # of the hub; None: a folder of this machine
    commit: str | None = None

    @property
    def name(self) -> str | None:
        """The repository's, without its owner's."""
        return self.repository.partition("/")[2] if self.repository else None

    @property
    def description(self) -> str | None:
        """For people, of a repository of the hub."""
        if self.repository is None:
            return None
        return f"{self.repository} of the hub at commit {self.commit}"

    def as_fields(self) -> dict[str, Any]:
        """What a file records of it."""
        if self.repository is None:
            return {"folder": str(self.path.absolute())}
        return {"hub": self.repository, "commit": self.commit}


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` is looked up in the hub.

    A path that exists never is; nor is one whose first part does, which is a slip rather than the
    name of somebody's repository.
    """
    path = Path(name)
    return (
        _ID.fullmatch(str(name)) is not None
        and not path.exists()
        and not Path(path.parts[0]).exists()
    )


def folder_of(
    name: str | Path,
    option: str,
    kind: Literal["model", "dataset"] = "model",
    files: Sequence[str] = MODEL_FILES,
) -> Folder:
    """The folder of this machine called `name`, or that of the hub, fetched where it is not here.

    Args:
        option: what `name` was given as, for messages.
        files: patterns of the files that are fetched.

    Raises:
        DataError: the hub has no such repository or revision, does not let it be read, cannot be
            reached, or what is there has none of the files.
    """
    found = _ID.fullmatch(str(name))
    if found is None or not is_hub_id(name):
        return Folder(Path(name))
    repository, revision = found["id"], found["revision"]
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                repository, repo_type=kind, revision=revision, allow_patterns=list(files)
            )
        )
    except Exception as error:
        raise _why_not(name, option, error) from None
    if not any(True for pattern in files for _ in path.rglob(pattern)):
        raise DataError(f"{option} {name}: the hub's {kind} has none of {', '.join(files)}")
    folder = Folder(path, repository, commit=path.name)
    say(f"{option}: {folder.description}, in {path}", sys.stderr)
    return folder


def _why_not(name: str | Path, option: str, error: Exception) -> NvlmError:
    """One line about what the hub's library raised."""
    from huggingface_hub import constants, errors

    where = f"{option} {name}: no such folder here"
    if isinstance(error, errors.GatedRepoError):
        return DataError(
            f"{where}, and the hub's needs its owner's consent: ask for it on its page, then "
            "`hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(f"{where}, and the hub's has no such revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DataError(f"{where}, and the hub has none of that name, or keeps it private")
    if constants.HF_HUB_OFFLINE:
        return DataError(
            f"{where}, nor in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE keeps "
            "from fetching it"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return DataError(
            f"{where}, nor in the hub's cache {constants.HF_HUB_CACHE}, and the hub "
            f"({constants.ENDPOINT}) cannot be reached"
        )
    lines = str(error).strip().splitlines() or [""]
    return DataError(f"{where}, and the hub: {type(error).__name__}: {printable(lines[0])}")
