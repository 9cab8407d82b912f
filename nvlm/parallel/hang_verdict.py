"""Which rank of a run that hangs differs from the others, and in what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from nvlm.parallel.hang_report import Standing
from nvlm.printing import listed

_MOST_RANKS = 8


def who_differs(standings: Collection[Standing]) -> list[Standing]:
    """The ranks that the others wait for; none where all seem to wait for each other.

    In turn: who does something else than wait, who has not come to a collective that others of its
    group have issued, who is furthest behind.
    """
    working = [some for some in standings if not some.waits]
    if working:
        # One that moved a moment ago is not what the run waits for.
        longest = max(some.seconds for some in working)
        return [some for some in working if some.seconds >= longest / 2]
    behind = _missing_in_a_collective(standings)
    if behind:
        return behind
    first = min((some.step, some.order) for some in standings)
    behind = [some for some in standings if (some.step, some.order) == first]
    return behind if len(behind) < len(standings) else []


def _missing_in_a_collective(standings: Collection[Standing]) -> list[Standing]:
    """Of the group where fewest ranks are behind, those that are."""
    found: list[list[Standing]] = []
    for group in sorted({name for some in standings for name in some.sequences}):
        numbers = {some.rank: some.sequences.get(group) for some in standings}
        known = [number for number in numbers.values() if number is not None]
        behind = [some for some in standings if numbers[some.rank] in range(max(known))]
        if behind:
            found.append(behind)
    return min(found, key=len, default=[])


def explain(standings: Collection[Standing], silent: Mapping[int, str]) -> str:
    """One line for people.

    Args:
        standings: of the ranks that answered.
        silent: rank -> what is known of it, of those that did not answer.
    """
    different = [] if silent else who_differs(standings)
    names = {some.rank for some in different} | set(silent)
    others = [some for some in standings if some.rank not in names]
    parts = [f"rank {rank} gives no sign of life: {known}" for rank, known in silent.items()]
    for where, ranks in _by_place(different):
        parts.append(f"{_ranks(ranks)} in {where}")
    if len(parts) > _MOST_RANKS:
        parts = [*parts[:_MOST_RANKS], f"{len(parts) - _MOST_RANKS} more do, too"]
    if not others:
        return " and ".join(parts)
    (place, _), *more = Counter(some.where for some in others).most_common()
    waiting = f"in {place}" + (" or elsewhere" if more else "")
    if not parts:
        return (
            f"all {len(standings)} ranks wait {waiting}, none for one that does something else: "
            f"suspect the network or a device; last collectives: {listed(_collectives(others), 4)}"
        )
    collectives = listed(_collectives(others), 2)
    detail = f" ({collectives})" if collectives else ""
    if len(others) == 1:
        return f"{' and '.join(parts)}, while rank {others[0].rank} waits {waiting}{detail}"
    return f"{' and '.join(parts)}, while the others wait {waiting}{detail}"


def _by_place(standings: Collection[Standing]) -> list[tuple[str, list[int]]]:
    ranks: dict[str, list[int]] = {}
    for some in standings:
        at = f" ({some.frame})" if some.frame else ""
        ranks.setdefault(f"{some.where}{at}", []).append(some.rank)
    return list(ranks.items())


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {listed([str(rank) for rank in ranks], _MOST_RANKS)} are"


def _collectives(standings: Collection[Standing]) -> list[str]:
    found = Counter(some.collective for some in standings if some.collective)
    return [name for name, _ in found.most_common()]
