"""All benchmarks by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from nvlm.evaluate.benchmarks.ai2d import AI2D, AI2D_NO_MASK
from nvlm.evaluate.benchmarks.chartqa import CHARTQA
from nvlm.evaluate.benchmarks.coco_captions import COCO_CAPTIONS
from nvlm.evaluate.benchmarks.documents import DOCVQA, INFOVQA
from nvlm.evaluate.benchmarks.entry import Benchmark
from nvlm.evaluate.benchmarks.mathvista import MATHVISTA
from nvlm.evaluate.benchmarks.mmbench import MMBENCH
from nvlm.evaluate.benchmarks.mmmu import MMMU
from nvlm.evaluate.benchmarks.nocaps import NOCAPS
from nvlm.evaluate.benchmarks.ocrbench import OCRBENCH
from nvlm.evaluate.benchmarks.okvqa import OKVQA
from nvlm.evaluate.benchmarks.pope import POPE
from nvlm.evaluate.benchmarks.realworldqa import REALWORLDQA
from nvlm.evaluate.benchmarks.refcoco import REFCOCO, REFCOCO_PLUS, REFCOCOG
from nvlm.evaluate.benchmarks.scienceqa import SCIENCEQA
from nvlm.evaluate.benchmarks.seed import SEED
from nvlm.evaluate.benchmarks.textcaps import TEXTCAPS
from nvlm.evaluate.benchmarks.textvqa import TEXTVQA
from nvlm.evaluate.benchmarks.vizwiz import VIZWIZ
from nvlm.evaluate.benchmarks.vqav2 import VQAV2

_ENTRIES: tuple[Benchmark, ...] = (
    AI2D,
    AI2D_NO_MASK,
    CHARTQA,
    COCO_CAPTIONS,
    DOCVQA,
    INFOVQA,
    MATHVISTA,
    MMBENCH,
    MMMU,
    NOCAPS,
    OCRBENCH,
    OKVQA,
    POPE,
    REALWORLDQA,
    REFCOCO,
    REFCOCOG,
    REFCOCO_PLUS,
    SCIENCEQA,
    SEED,
    TEXTCAPS,
    TEXTVQA,
    VIZWIZ,
    VQAV2,
)

BENCHMARKS = {entry.name: entry for entry in _ENTRIES}
