"""The processes of a run: are sums of every process group right, how fast are links and devices.

What is wrong ends with exit code 2; what is slow is said, as a busy machine is slow too.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch.distributed as dist
from rich.console import Console

from nvlm import platform
from nvlm.config import RunConfig
from nvlm.doctor.collectives import find_wrong_sums, measure_all_reduce, measure_product
from nvlm.doctor.deadline import Deadline
from nvlm.doctor.finding import Finding, print_findings
from nvlm.doctor.machine import look_at_versions
from nvlm.doctor.pairs import Pair, measure_pairs, num_rounds
from nvlm.launch import launched
from nvlm.parallel.attempt import attempt_store
from nvlm.parallel.groups import initialize, initialize_world
from nvlm.printing import listed
from nvlm.tables import print_table

# (of a sum, of a pair's exchange, side of a matrix): on GPUs, on CPUs.
_SIZES = {True: (2**28, 2**26, 8192), False: (2**22, 2**20, 512)}
_SECONDS_FOR_PAIRS = 60.0
# What is slower than this share of the usual is named.
_SLOW = 0.5


@dataclass(frozen=True)
class Place:
    """A process, for those who look for it."""

    rank: int
    host: str
    device: str
    versions: tuple[str, ...]

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class GroupSpeed:
    """What one process measured in its group of a kind."""

    kind: str
    ranks: tuple[int, ...]
    bytes_per_second: float
    wrong: tuple[int, ...]  # whose part of a sum is not as it was sent


def look_at_processes(
    config: RunConfig | None, deadline: Deadline, console: Console
) -> list[Finding]:
    """Check all process groups of a configuration's layout, all pairs, and every device.

    Every process calls this; each gets the same findings.

    Args:
        config: None: the processes as one group.
        deadline: which watches already.
    """
    deadline.store = attempt_store()
    deadline.begin("making the process groups")
    groups = _make_groups(config)
    deadline.begin("comparing versions")
    places = _gather(_this_place())
    findings = _compare_versions(places)
    of_sum, of_pair, side = _SIZES[platform.current().machine().has_gpu]
    speeds = []
    for kind, group in groups.items():
        deadline.begin(f"sums of the {kind} groups")
        speeds += _gather(_measure_group(kind, group, of_sum))
    findings += _judge_sums(speeds, places)
    _print_speeds(speeds, of_sum, console)
    deadline.begin("exchanges of pairs")
    seconds = min(_SECONDS_FOR_PAIRS, deadline.limit_seconds / 2)
    findings += _judge_pairs(*measure_pairs(of_pair, seconds), places)
    deadline.begin("products of matrices")
    findings += _judge_products(_gather(measure_product(side)), places)
    deadline.begin("the end")
    print_findings(_title(places), findings, console)
    return findings


def _make_groups(config: RunConfig | None) -> dict[str, dist.ProcessGroup]:
    """Those with more than one process, by kind."""
    if config is None:
        initialize_world()
        return {"world": _world()}
    groups = initialize(config).groups
    found = {
        "tensor": groups.tp,
        "context": groups.cp,
        "pipeline": groups.pp,
        "data": groups.dp,
        "tensor x pipeline": groups.mp,
        "world": _world(),
    }
    layout = config.parallel
    num_data = dist.get_world_size() // layout.model_parallel_size
    sizes = (layout.tensor, layout.context, layout.pipeline, num_data, groups.mp.size(), 2)
    return {kind: group for (kind, group), size in zip(found.items(), sizes) if size > 1}


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None, "it is made before"
    return world


def _this_place() -> Place:
    versions = tuple(f"{finding.what} {finding.found}" for finding in look_at_versions())
    device = platform.current().machine().device
    return Place(launched().rank, socket.gethostname(), device, versions)


def _gather(value) -> list:
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _measure_group(kind: str, group: dist.ProcessGroup, num_bytes: int) -> GroupSpeed:
    wrong = find_wrong_sums(group)
    speed = measure_all_reduce(group, num_bytes)
    return GroupSpeed(kind, tuple(dist.get_process_group_ranks(group)), speed, tuple(wrong))


def _title(places: Sequence[Place]) -> str:
    num_hosts = len({place.host for place in places})
    return f"{len(places)} processes on {num_hosts} machine{'s' * (num_hosts != 1)}"


def _compare_versions(places: Sequence[Place]) -> list[Finding]:
    return [
        _compare("versions", {place: ", ".join(place.versions) for place in places}),
        _compare("devices", {place: place.device for place in places}),
    ]


def _compare(what: str, values: dict[Place, str]) -> Finding:
    found = Counter(values.values())
    usual, _ = found.most_common(1)[0]
    others = [place for place, value in values.items() if value != usual]
    if not others:
        return Finding(what, "the same everywhere")
    wrong = f"{listed(others, 4)}: {values[others[0]]}; the others: {usual}: make them the same"
    return Finding(what, f"{len(found)} kinds", wrong=wrong)


def _judge_sums(speeds: Sequence[GroupSpeed], places: Sequence[Place]) -> list[Finding]:
    wrong = sorted({(speed.kind, rank) for speed in speeds for rank in speed.wrong})
    kinds = list(dict.fromkeys(speed.kind for speed in speeds))
    whose = "; ".join(f"{kind} group: the part of {places[rank]}" for kind, rank in wrong)
    found = f"looked at in {len({(s.kind, s.ranks) for s in speeds})} groups ({', '.join(kinds)})"
    return [
        Finding(
            "sums",
            found if wrong else f"{found}: all right",
            wrong=whose and f"wrong: {whose}: take the machine out, and test its memory and links",
        )
    ]


def _print_speeds(speeds: Sequence[GroupSpeed], num_bytes: int, console: Console) -> None:
    """A row for each kind of group: how fast the usual one is, and which is the slowest."""
    rows = []
    for kind in dict.fromkeys(speed.kind for speed in speeds):
        # A group is as fast as its slowest process found.
        by_ranks: dict[tuple[int, ...], float] = {}
        for speed in speeds:
            if speed.kind == kind:
                known = by_ranks.get(speed.ranks, float("inf"))
                by_ranks[speed.ranks] = min(known, speed.bytes_per_second)
        slowest = min(by_ranks, key=lambda ranks: by_ranks[ranks])
        rows.append(
            [
                kind,
                f"{len(by_ranks)}",
                f"{len(slowest)}",
                f"{median(by_ranks.values()) / 1e9:.2f}",
                f"{by_ranks[slowest] / 1e9:.2f}",
                listed(slowest, 4),
            ]
        )
    print_table(
        console,
        f"Sums of {num_bytes / 2**20:.0f} MiB: GB/s that each link carries",
        ["group", "groups", "size", "median", "slowest", "its ranks"],
        rows,
    )


def _judge_pairs(pairs: Sequence[Pair], num_done: int, places: Sequence[Place]) -> list[Finding]:
    """The slowest pair; and a rank whose pairs are slow, which its partners' others are not."""
    usual = median(pair.bytes_per_second for pair in pairs)
    slowest = min(pairs, key=lambda pair: pair.bytes_per_second)
    first, second = (places[rank] for rank in slowest.ranks)
    found = (
        f"{len(pairs)} looked at in {num_done} of {num_rounds(len(places))} rounds: median "
        f"{usual / 1e9:.2f} GB/s; slowest {slowest.bytes_per_second / 1e9:.2f} GB/s: {first} with "
        f"{second}"
    )
    of_rank = {
        place.rank: median(p.bytes_per_second for p in pairs if place.rank in p.ranks)
        for place in places
        if any(place.rank in p.ranks for p in pairs)
    }
    slow = [places[rank] for rank, speed in of_rank.items() if speed < _SLOW * usual]
    note = f"slow with most others: {listed(slow, 8)}" if slow and len(places) > 2 else ""
    return [Finding("pairs", found, worth_knowing=note)]


def _judge_products(
    products: Sequence[tuple[float, str]], places: Sequence[Place]
) -> list[Finding]:
    speeds, prints = zip(*products, strict=True)
    usual = max(set(prints), key=prints.count)
    wrong = [place for place, found in zip(places, prints) if found != usual]
    at_slowest = speeds.index(min(speeds))
    found = (
        f"median {median(speeds) / 1e12:.3g} TFLOP/s in fp32; slowest "
        f"{speeds[at_slowest] / 1e12:.3g}: {places[at_slowest]}"
    )
    slow = [place for place, speed in zip(places, speeds) if speed < _SLOW * median(speeds)]
    return [
        Finding(
            "products of matrices",
            found,
            wrong=f"{listed(wrong, 8)}: other bits than the rest: do not train there"
            if wrong
            else "",
            worth_knowing=f"slow: {listed(slow, 8)}" if slow else "",
        )
    ]
