"""All benchmarks by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from nvlm.evaluate.benchmarks.entry import Benchmark
from nvlm.evaluate.benchmarks.realworldqa import REALWORLDQA

_ENTRIES: tuple[Benchmark, ...] = (REALWORLDQA,)

BENCHMARKS = {entry.name: entry for entry in _ENTRIES}
