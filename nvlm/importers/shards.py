"""Writing one unit of samples as shards of bounded size and count."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nvlm.files import write_text
from nvlm.importers.records import Record, Reject

_BLOCK = 512
# Names of fields that are counted one by one; the rest is counted together.
_MAX_UNUSED_NAMES = 500
OTHER_FIELDS = "(fields of other names)"


def add_unused(counts: dict[str, int], names: Mapping[str, int]) -> None:
    """Add samples per unused field to `counts`, whose size stays bounded."""
    for name, count in names.items():
        known = name in counts or len(counts) < _MAX_UNUSED_NAMES
        name = name if known else OTHER_FIELDS
        counts[name] = counts.get(name, 0) + count


@dataclass
class UnitResult:
    """What became of a unit; kept as JSON beside its shards."""

    num_samples: int = 0
    num_images: int = 0
    num_bytes: int = 0
    num_shards: int = 0
    rejects: list[Reject] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)  # field of the source -> samples
    weighted: dict[str, int] = field(default_factory=dict)  # field that weights -> samples

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> UnitResult:
        values = json.loads(path.read_text())
        rejects = [Reject(**reject) for reject in values["rejects"]]
        return cls(**values | {"rejects": rejects})

    @property
    def reasons(self) -> Counter[str]:
        return Counter(reject.reason for reject in self.rejects)


def write_unit(
    records: Iterable[Record | Reject],
    folder: Path,
    name: str,
    max_bytes: int,
    max_samples: int,
    count: Callable[[], None],
) -> UnitResult:
    """Write `folder/NAME-000.tar`, ...; a file of that name is whole.

    None is larger than `max_bytes` unless a single sample is.

    Tars are the same bytes for the same records: no times, no owners.

    Args:
        count: called once per record and reject.
    """
    result = UnitResult()
    tar: tarfile.TarFile | None = None
    beside = folder / f"{name}.tmp"
    num_samples = 0
    try:
        for record in records:
            count()
            if isinstance(record, Reject):
                result.rejects.append(record)
                continue
            members = _members(record)
            size = sum(_size(member) for member, _ in members)
            if tar is not None and (
                num_samples >= max_samples or _whole(tar.offset + size) > max_bytes
            ):
                _finish(tar, beside, folder / f"{name}-{result.num_shards - 1:03d}.tar")
                tar = None
            if tar is None:
                tar = tarfile.open(beside, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
                num_samples = 0
                result.num_shards += 1
            for member, data in members:
                tar.addfile(member, io.BytesIO(data))
            num_samples += 1
            result.num_samples += 1
            result.num_images += sum(name != "json" for name in record.members)
            result.num_bytes += size
            add_unused(result.unused, dict.fromkeys(record.unused, 1))
            if record.weighted_by:
                name_of_field = record.weighted_by
                result.weighted[name_of_field] = result.weighted.get(name_of_field, 0) + 1
        if tar is not None:
            _finish(tar, beside, folder / f"{name}-{result.num_shards - 1:03d}.tar")
            tar = None
    finally:
        if tar is not None:
            # Where the disk is full, closing fails as writing did.
            with contextlib.suppress(OSError):
                tar.close()
        beside.unlink(missing_ok=True)
    return result


def _finish(tar: tarfile.TarFile, beside: Path, path: Path) -> None:
    tar.close()
    beside.replace(path)


def _members(record: Record) -> list[tuple[tarfile.TarInfo, bytes]]:
    members = []
    for extension, data in record.members.items():
        member = tarfile.TarInfo(f"{record.key}.{extension}")
        member.size = len(data)
        members.append((member, data))
    return members


def _size(member: tarfile.TarInfo) -> int:
    """Bytes of a member with its headers, of which a long name takes several."""
    return len(member.tobuf(tarfile.PAX_FORMAT)) + -(-member.size // _BLOCK) * _BLOCK


def _whole(size: int) -> int:
    """Bytes of a tar with members of `size`: two blocks end it, and it is filled up."""
    return -(-(size + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
