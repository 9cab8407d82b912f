"""YAML as plain values: mappings, lists, texts and null, nothing else.

A scalar stays the text that was written. Whether `010`, `no` or `8e3` is a number, a switch or a
name is decided by the key that it belongs to (nvlm/config/values.py), not by YAML's rules, which
make 8, false and 8000 of them. What would lose something in silence is refused: a key given twice,
tags, a second document. Nothing is executed, and small files cannot become large values.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from nvlm.config.wording import shorten
from nvlm.errors import ConfigError

# A configuration has a few KB; one with a blend of a thousand sources has 100.
MAX_FILE_BYTES = 1 << 17
# Aliases repeat what they name, so values can be far larger than their file.
MAX_NUM_VALUES = 50_000
MAX_DEPTH = 40

Values = dict[str, Any]

_NULLS = ("", "~", "null", "Null", "NULL")
_TAG_OF_KIND = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.MappingNode: "tag:yaml.org,2002:map",
}


def read_yaml(path: Path, wanted_by: str = "") -> Values:
    """The mapping that the file `path` holds.

    Args:
        wanted_by: said where there is no such file.

    Raises:
        ConfigError: no such file, not YAML in UTF-8, not one mapping, or refused as said above.
    """
    values = read_document(path, "configuration file", wanted_by)
    if values is None:
        raise ConfigError(f"{path}: is empty; expected sections such as `run:` and `train:`")
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else f"the text {shorten(values)}"
        raise ConfigError(
            f"{path}: must be a mapping of sections such as `run:` and `train:`, found {found}"
        )
    return values


def read_document(path: Path, kind: str, wanted_by: str = "") -> Any:
    """The values that the file `path` holds; None where there are none.

    Raises:
        ConfigError: no such file, or not YAML in UTF-8. Says that a file of this `kind` was wanted.
    """
    text = _read_text(path, kind, wanted_by)
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """One YAML document as plain values; None where there is nothing.

    Raises:
        ConfigError: says where and why, and not in which file.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Reader().plain(node, 0)
    except yaml.YAMLError as error:
        raise ConfigError(f"not readable as YAML: {_reason(error)}") from None
    except RecursionError:
        raise ConfigError(f"nested deeper than {MAX_DEPTH} levels") from None


def _read_text(path: Path, kind: str, wanted_by: str) -> str:
    name = str(path) if len(str(path)) < 1000 else shorten(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise ConfigError(f"{name}: is {found}, not a {kind}{wanted_by}")
        if status.st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{name}: has {status.st_size:,} bytes; a {kind} has at most {MAX_FILE_BYTES:,}"
            )
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{name}: no such {kind}{wanted_by}") from None
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError(f"{name}: cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: not readable as YAML: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{shorten(str(path))}: is not a file name: {error}") from None


class _Loader(yaml.BaseLoader):
    """PyYAML's, stopped early in brackets in brackets: its time grows with their depth squared."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > MAX_DEPTH:
            raise ConfigError(f"line {self.line + 1}: nested deeper than {MAX_DEPTH} levels")
        super().fetch_flow_collection_start(TokenClass)


class _Reader:
    """From nodes to values, counting them."""

    def __init__(self) -> None:
        self._num_values = 0

    def plain(self, node: yaml.Node, depth: int) -> Any:
        self._check(node, depth)
        if isinstance(node, yaml.ScalarNode):
            return None if node.style is None and node.value in _NULLS else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, depth + 1) for item in node.value]
        return self._mapping(node, depth)

    def _mapping(self, node: yaml.Node, depth: int) -> Values:
        merged: Values = {}
        own: Values = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(
                    f"{_place(key_node)}: a key must be a word, found a list or a map"
                )
            key = key_node.value
            self._check(key_node, depth)
            if key == "<<" and key_node.style is None:
                # Merge keys: earlier mappings win over later ones, own keys over all.
                below = self.plain(value_node, depth + 1)
                for mapping in below if isinstance(below, list) else [below]:
                    if not isinstance(mapping, dict):
                        raise ConfigError(f"{_place(key_node)}: << takes mappings only")
                    merged = mapping | merged
                continue
            if not key:
                raise ConfigError(f"{_place(key_node)}: an empty key")
            if key in own:
                raise ConfigError(
                    f"{_place(key_node)}: the key {shorten(key)} is given twice; YAML would keep "
                    "only the second: remove one"
                )
            own[key] = self.plain(value_node, depth + 1)
        return merged | own

    def _check(self, node: yaml.Node, depth: int) -> None:
        self._num_values += 1
        if self._num_values > MAX_NUM_VALUES:
            raise ConfigError(f"holds more than {MAX_NUM_VALUES:,} values, its aliases repeated")
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{_place(node)}: nested deeper than {MAX_DEPTH} levels, or an alias holds itself"
            )
        if node.tag != _TAG_OF_KIND[type(node)]:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(
                f"{_place(node)}: the tag {shorten(tag)} is not read here: write the value alone"
            )


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _reason(error: yaml.YAMLError) -> str:
    """In one line what PyYAML spreads over several, with the line's number."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None)
    if problem is None:  # a character that YAML does not allow
        problem = str(error).splitlines()[0]
    if "\\t" in problem:
        problem += ": indent with spaces, not tabs"
    if "expected a single document" in str(error):
        problem = "a second document begins (`---`); expected one"
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(problem.split())
