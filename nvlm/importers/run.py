"""`nvlm data import`: a source in a known format to a folder of shards, by several processes.

Everything is written to `OUT/SPLIT/.SOURCE.import` and renamed to `OUT/SPLIT/SOURCE` when it is
complete. A unit that is done leaves its result there, so an interrupted import goes on with the
units that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from filelock import FileLock, Timeout

from nvlm.errors import DataError
from nvlm.files import json_line, write_text
from nvlm.importers.formats import FORMATS, ImportOptions, open_reader
from nvlm.importers.records import Reader, clean_key
from nvlm.importers.shards import UnitResult, add_unused, write_unit
from nvlm.places import check_name
from nvlm.workers import map_forked

# Raise it when the same source would give other shards.
IMPORT_VERSION = 3
_STATE = ".units"
REJECTED_FILE = "rejected.jsonl"
SUMMARY_FILE = "import.json"


@dataclass(frozen=True)
class ImportSummary:
    """What an import made, as `import.json` keeps it."""

    folder: str
    num_samples: int
    num_images: int
    num_bytes: int
    num_shards: int
    num_rejected: int
    reasons: dict[str, int]
    unused_fields: dict[str, int]  # field of the source -> samples that have it, most first
    weighted_by: dict[str, int]  # field that multiplies the loss -> samples that have it
    notes: list[str]  # on the files of the source: which were chosen, which were not read


# Called with units done, units in all, samples read (good or not) and samples in all, if known.
ShowProgress = Callable[[int, int, int, int | None], None]


def import_source(
    options: ImportOptions, out: Path, show: ShowProgress | None = None
) -> ImportSummary:
    """Write the shards of `options.source` to `out/split/name`.

    Raises:
        DataError: the source is not of this format or has no usable sample, the folder exists, or
            an interrupted import left something that another source or other options began; the
            disk is full, or something else keeps the shards from being written.
    """
    check_name("--split", options.split)
    for option, value in (("--source", options.name), ("--from-split", options.from_split)):
        if value is not None:
            check_name(option, value)
    name = clean_key(options.name or options.source.name.split(".")[0] or options.format)
    folder = out / options.split / name
    work = folder.with_name(f".{folder.name}.import")
    if folder.exists():
        raise DataError(f"{folder} exists; remove it, or give another --source or --split")
    try:
        reader = open_reader(options)
    except OSError as error:
        raise DataError(f"{options.source}: cannot be read: {error}") from None
    if options.source.is_dir() and out.resolve().is_relative_to(options.source.resolve()):
        raise DataError(f"{out} lies inside {options.source}, which is read; write to another OUT")
    try:
        return _import(options, reader, folder, work, show)
    except OSError as error:
        raise DataError(
            f"{work}: the import cannot continue: {error}; fix that and run the same command again"
        ) from None


def _import(
    options: ImportOptions, reader: Reader, folder: Path, work: Path, show: ShowProgress | None
) -> ImportSummary:
    (work / _STATE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    try:
        with lock.acquire(blocking=False):
            _check_plan(work, options, reader)
            _write_units(work, folder.name, options, reader, show)
            summary = _summarise(work, folder, options, reader)
            work.rename(folder)
            shutil.rmtree(folder / _STATE)
    except Timeout:
        raise DataError(f"{work}: another import is writing to it") from None
    finally:
        if not work.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
    return summary


def _check_plan(work: Path, options: ImportOptions, reader: Reader) -> None:
    """Raise `DataError` unless what `work` holds belongs to this import."""
    digest = hashlib.sha256()
    for file in reader.files:
        try:
            stat = file.stat()
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:  # a link to nowhere or in a circle, which is left out when it is read
            state = "gone"
        digest.update(f"{file}\0{state}\n".encode("utf-8", "surrogateescape"))
    plan = {
        "version": IMPORT_VERSION,
        "options": {
            key: str(value)
            for key, value in asdict(options).items()
            if key != "num_workers" and (key, value) != ("origin", None)
        },
        "files": digest.hexdigest(),
        "num_units": reader.num_units,
    }
    path = work / _STATE / "plan.json"
    if not path.is_file():
        write_text(path, json.dumps(plan))
    elif (before := json.loads(path.read_text())) != plan:
        changed = sorted(name for name in plan if before.get(name) != plan[name])
        raise DataError(
            f"{work} is from an interrupted import with other {' and '.join(changed)}; give the "
            "same as then to continue, or remove it to start over"
        )


@dataclass(frozen=True)
class _Job:
    """What every process needs."""

    reader: Reader
    work: Path
    name: str
    options: ImportOptions
    num_read: Synchronized[int]  # samples, over all processes


def _write_units(
    work: Path, name: str, options: ImportOptions, reader: Reader, show: ShowProgress | None
) -> None:
    num_read = get_context("fork").Value("q", 0)
    job = _Job(reader, work, name, options, num_read)
    missing = []
    for unit in range(reader.num_units):
        if (path := _result_path(work, unit)).is_file():
            result = UnitResult.load(path)
            num_read.value += result.num_samples + len(result.rejects)
        else:
            missing.append(unit)
    num_done = reader.num_units - len(missing)

    def report() -> None:
        if show is not None:
            show(num_done, reader.num_units, num_read.value, reader.num_samples)

    report()
    num_workers = min(options.num_workers, len(missing))
    who = f"{work}: a process that wrote shards"
    with closing(map_forked(partial(_write_one, job), missing, num_workers, who, report)) as units:
        for _ in units:
            num_done += 1
            report()


def _write_one(job: _Job, unit: int) -> None:
    result = write_unit(
        job.reader.read(unit),
        job.work,
        f"{job.name}-{unit:06d}",
        job.options.shard_bytes,
        job.options.samples_per_shard,
        partial(_count_one, job.num_read),
    )
    result.save(_result_path(job.work, unit))


def _count_one(num_read: Synchronized[int]) -> None:
    with num_read.get_lock():
        num_read.value += 1


def _result_path(work: Path, unit: int) -> Path:
    return work / _STATE / f"{unit:06d}.json"


def _summarise(work: Path, folder: Path, options: ImportOptions, reader: Reader) -> ImportSummary:
    totals = UnitResult()
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    with (work / REJECTED_FILE).open("w", encoding="utf-8") as file:
        for unit in range(reader.num_units):
            result = UnitResult.load(_result_path(work, unit))
            totals.num_samples += result.num_samples
            totals.num_images += result.num_images
            totals.num_bytes += result.num_bytes
            totals.num_shards += result.num_shards
            reasons += result.reasons
            add_unused(totals.unused, result.unused)
            add_unused(totals.weighted, result.weighted)
            for reject in result.rejects:
                file.write(json_line(asdict(reject)))
                if len(examples) < 3:
                    examples.append(f"{reject.name}: {reject.detail}")
    if totals.num_samples == 0:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        shutil.rmtree(work)
        raise DataError(
            f"{options.source}: no usable sample among {sum(reasons.values())}: "
            f"{counts or 'it is empty'}" + "".join(f"\n  {example}" for example in examples)
        )
    summary = ImportSummary(
        str(folder),
        totals.num_samples,
        totals.num_images,
        totals.num_bytes,
        totals.num_shards,
        sum(reasons.values()),
        dict(reasons.most_common()),
        dict(sorted(totals.unused.items(), key=lambda item: (-item[1], item[0]))),
        totals.weighted,
        reader.notes + ([f"read {options.origin}"] if options.origin else []),
    )
    (work / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def default_num_workers() -> int:
    return len(os.sched_getaffinity(0))


def known_formats() -> str:
    return "|".join(FORMATS)
