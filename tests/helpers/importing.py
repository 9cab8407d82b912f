"""Imports as tests run them, and what they wrote."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from helpers.shard_reading import iterate_samples
from nvlm.importers.formats import ImportOptions
from nvlm.importers.run import ImportSummary, import_source


def run(form: str, source: Path, out: Path, **options) -> ImportSummary:
    return import_source(ImportOptions(form, source, name="it", **options), out)


def read(out: Path, split: str = "train") -> dict[str, tuple[list[dict], list[bytes]]]:
    """Key -> (messages, images), as training reads them."""
    shards = sorted((out / split / "it").glob("*.tar"))
    return {key: (messages, images) for key, messages, images in iterate_samples(shards)}


def stored(out: Path) -> dict[str, dict]:
    """Key -> JSON, in order."""
    found = {}
    for shard in sorted((out / "train" / "it").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name[:-5]] = json.loads(tar.extractfile(member).read())
    return found


def rejected(out: Path) -> dict[str, tuple[str, str]]:
    lines = (out / "train" / "it" / "rejected.jsonl").read_text().splitlines()
    return {(r := json.loads(line))["name"]: (r["reason"], r["detail"]) for line in lines}


def turns(question: str, answer: str = "An answer.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
