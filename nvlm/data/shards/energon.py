"""Folders prepared for Megatron-Energon, read where they are.

Of `.nv-meta/` we read `split.yaml` (which shards belong to a split, what is left out) and
`dataset.yaml` (the sample type and which members hold its fields). Its index files are not needed:
ours is built from the tars. Sample types that name a Python function (`sample_loader`) need that
function and are refused; older files name the type as a data set (`VQAWebdataset`);
`CrudeWebdataset` is read by the rules for plain shards (shard.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from braceexpand import UnbalancedBracesError, braceexpand

from nvlm.data.samples.field_map import Access, FieldMap
from nvlm.data.shards.regular_files import read_regular_file
from nvlm.errors import DataError

_META = ".nv-meta"
_MAX_SETTINGS_BYTES = 64 << 20  # lists of millions of shards and samples
# Energon's sample type -> our kind (kinds.py), and its fields under our names.
_SAMPLE_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "CaptioningSample": ("caption", {"caption": "caption"}),
    "VQASample": (
        "vqa",
        {"context": "question", "answers": "answers", "answer_weights": "answer_weights"},
    ),
    "MultiChoiceVQASample": (
        "multiple_choice",
        {"context": "question", "choices": "choices", "correct_choice_idx": "correct"},
    ),
    "OCRSample": ("ocr", {"text": "text"}),
    "TextSample": ("text", {"text": "text"}),
}
# What a sample can do without.
_OPTIONAL = {"answer_weights"}
# Those of Energon that have no one meaning here, and why.
_REFUSED = {
    "ImageSample": "it has an image and no text to train on",
    "ImageClassificationSample": "it has a class, and no words that ask for it: write questions or "
    "captions (VQASample, CaptioningSample)",
    "InterleavedSample": "its images come from Python's own format: write one image a member, and "
    "the parts as JSON",
    "SimilarityInterleavedSample": "its images come from Python's own format: write one image a "
    "member, and the parts as JSON, each image before the text that it matches",
    "VQAOCRSample": "it is a question and a transcription in one: write two samples",
    "VidQASample": "write a conversation with the mark <video>",
}
_WITHOUT_CODE = "its sample_loader is a Python function, and nothing that is read runs code"
_ACCESS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


def is_prepared(folder: Path) -> bool:
    return (folder / _META).is_dir()


def prepared_shards(folder: Path, split: str) -> list[Path]:
    """The shards of `split` in the order of `split.yaml`, without those it excludes.

    Raises:
        DataError: the split is not in `split.yaml`, or a shard is missing.
    """
    config = _read(folder, "split")
    parts = config.get("split_parts")
    if not isinstance(parts, dict) or split not in parts:
        known = ", ".join(map(str, parts)) if isinstance(parts, dict) else "none"
        raise DataError(
            f"{folder / _META}: its split.yaml has no split {split!r} "
            f"(data.split, or --from-split of an import), only {known}"
        )
    excluded = _expand(folder, config.get("exclude"))
    shards = [folder / name for name in _expand(folder, parts[split]) if name not in excluded]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(
            f"{folder / _META}: split.yaml names shards that do not exist, such as {missing[0]}"
        )
    return shards


def excluded_samples(folder: Path) -> set[str]:
    """`SHARD/KEY` of the samples that `split.yaml` leaves out."""
    if not is_prepared(folder):
        return set()
    excluded = _expand(folder, _read(folder, "split").get("exclude"))
    return {name for name in excluded if "/" in name}


def read_field_map(folder: Path) -> FieldMap | None:
    """The field map of a prepared folder. None: read by the rules for plain shards.

    Raises:
        DataError: a sample type or field that is not read.
    """
    if not is_prepared(folder) or not _path(folder, "dataset").is_file():
        return None
    config = _read(folder, "dataset")
    where = f"{_path(folder, 'dataset')}"
    declared = config.get("sample_type")
    name = (declared if isinstance(declared, dict) else config).get("__class__")
    if name in ("CrudeWebdataset", "CrudeSample"):
        return None
    if isinstance(name, str):
        name = re.sub("Webdataset$", "Sample", name)
    if config.get("sample_loader") is not None:
        raise DataError(
            f"{where}: {name}: {_WITHOUT_CODE}: write a field_map, or CrudeWebdataset with members "
            "that nvlm knows (nvlm/data/samples/members.py)"
        )
    if isinstance(name, str) and name in _REFUSED:
        raise DataError(f"{where}: sample type {name} is not read: {_REFUSED[name]}")
    fields = config.get("field_map")
    if not isinstance(name, str) or name not in _SAMPLE_TYPES or not isinstance(fields, dict):
        raise DataError(
            f"{where}: sample type {name} with {'a' if fields else 'no'} field_map is not read; "
            f"known with a field_map are {', '.join(_SAMPLE_TYPES)}, and CrudeWebdataset, whose "
            "members nvlm names itself (nvlm/data/samples/members.py)"
        )
    kind, names = _SAMPLE_TYPES[name]
    unknown = sorted(map(str, set(fields) - set(names) - {"image"}))
    if unknown:
        raise DataError(
            f"{where}: fields of {name} that are not read: {', '.join(unknown)}; known are "
            f"image, {', '.join(names)}: leave the others out, if these are to be trained on"
        )
    missing = [key for key in names if key not in fields and key not in _OPTIONAL]
    if missing:
        raise DataError(
            f"{where}: the field_map of {name} does not say where {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'}, which is trained on"
        )
    return FieldMap(
        kind,
        image=_options(fields["image"], where) if "image" in fields else [],
        fields={names[key]: _options(fields[key], where) for key in names if key in fields},
    )


def _options(text: Any, where: str) -> list[Access]:
    """`json[a][b],txt` as [("json", "a", "b"), ("txt",)]."""
    options = []
    for option in str(text).split(","):
        match = _ACCESS.fullmatch(option.strip())
        if match is None:
            raise DataError(f"{where}: field_map entry {text!r} is not like `jpg` or `json[key]`")
        options.append((match[1].lower(), *re.findall(r"\[([^\[\]]+)\]", match[2])))
    return options


def _path(folder: Path, name: str) -> Path:
    for suffix in (".yaml", ".json"):
        if (path := folder / _META / f"{name}{suffix}").is_file():
            return path
    return folder / _META / f"{name}.yaml"


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = _path(folder, name)
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file; `energon prepare {folder}` writes it")
        value = yaml.safe_load(read_regular_file(path, _MAX_SETTINGS_BYTES))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a mapping, found {type(value).__name__}")
    return value


def _expand(folder: Path, names: Any) -> list[str]:
    """The names of a list in `split.yaml`, each `a-{0..2}.tar` as three."""
    where = f"{_path(folder, 'split')}"
    if not isinstance(names or [], list):
        raise DataError(f"{where}: expected a list of names, found {names!r}")
    try:
        return [expanded for name in names or [] for expanded in braceexpand(str(name))]
    except UnbalancedBracesError as error:
        raise DataError(f"{where}: {error}; write names like part-{{0..9}}.tar") from None
