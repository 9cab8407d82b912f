"""All benchmarks by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from nvlm.evaluate.benchmarks.ai2d import AI2D, AI2D_NO_MASK
from nvlm.evaluate.benchmarks.chartqa import CHARTQA
from nvlm.evaluate.benchmarks.documents import DOCVQA, INFOVQA
from nvlm.evaluate.benchmarks.entry import Benchmark
from nvlm.evaluate.benchmarks.mathvista import MATHVISTA
from nvlm.evaluate.benchmarks.mmmu import MMMU
from nvlm.evaluate.benchmarks.ocrbench import OCRBENCH
from nvlm.evaluate.benchmarks.realworldqa import REALWORLDQA
from nvlm.evaluate.benchmarks.scienceqa import SCIENCEQA
from nvlm.evaluate.benchmarks.textvqa import TEXTVQA

_ENTRIES: tuple[Benchmark, ...] = (
    AI2D,
    AI2D_NO_MASK,
    CHARTQA,
    DOCVQA,
    INFOVQA,
    MATHVISTA,
    MMMU,
    OCRBENCH,
    REALWORLDQA,
    SCIENCEQA,
    TEXTVQA,
)

BENCHMARKS = {entry.name: entry for entry in _ENTRIES}
