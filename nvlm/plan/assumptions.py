"""Every number of a plan that is neither counted nor stated by a card's maker, with its source.

None was chosen to meet a published throughput of a training: they are of single operations. Any of
them can be overridden (`--assume NAME=VALUE`), the card's own numbers too.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from nvlm.errors import ConfigError
from nvlm.plan.hardware import Card

_GUESS = "an estimate, not measured"
_MATMULS = "stas00/ml-engineering, Maximum Achievable Matmul FLOPS"
_COUNTED = "reads and writes counted, bf16"


@dataclass(frozen=True)
class Assumption:
    """A number that a plan rests on; `source` says where it comes from."""

    name: str
    value: float
    unit: str
    source: str


# (name, value, unit, source): the same for every card.
_GENERAL = (
    ("matmul_efficiency", 0.68, "of the peak",
     f"{_MATMULS}: 80 % on an H100, 87 % on an A100 at their best shape; those of a layer are not"),
    ("attention_efficiency_forward", 0.45, "of the peak",
     "pytorch/benchmark pull request 2391: 566 to 590 TFLOP/s (57 to 60 %) on an H100 at 2 to 4 "
     "thousand tokens without a mask, FlashAttention-3; a mask leaves less"),
    ("attention_efficiency_backward", 0.35, "of the peak",
     "FlashAttention-3 paper (arXiv 2407.08608), figures: three quarters of the forward's"),
    ("memory_efficiency", 0.8, "of the memory's bandwidth",
     "copies and triads reach 84 to 92 % on an H100; small operations reach less"),
    ("link_efficiency", 0.65, "of the link in a node",
     "calculon-ai/calculon systems/a100_80g.json"),
    ("network_efficiency", 0.8, "of the link between nodes",
     "calculon-ai/calculon systems/a100_80g.json says 0.9; rings over many nodes reach less"),
    ("link_latency", 10e-6, "seconds a message", "calculon-ai/calculon systems/a100_80g.json"),
    ("network_latency", 20e-6, "seconds a message", "calculon-ai/calculon systems/a100_80g.json"),
    ("launch_seconds", 8e-6, "seconds an operation costs the host",
     f"{_GUESS}: Python, autograd and the driver together"),
    ("memory_overhead", 4e9, "bytes",
     f"{_GUESS}: context, communicators and libraries take 3 to 5 GB"),
    ("fragmentation", 0.05, "of what comes and goes",
     f"{_GUESS}: what torch's allocator cannot use of the memory that it holds"),
)  # fmt: skip


# Bytes through memory for each number of a tensor in bf16: kernels' name in platform/features.py,
# and rows with the values without them and with them.
_TRAFFIC = {
    "compiled_norms_and_swiglu": (
        ("norm_bytes_forward", "bytes a number", 36, 4),
        ("norm_bytes_backward", "bytes a number", 102, 12),
        ("activation_bytes_forward", "bytes a number of the MLP", 10, 6),
        ("activation_bytes_backward", "bytes a number of the MLP", 30, 10),
    ),
    "fused_rotation": (("rotary_bytes", "bytes a number", 24, 4),),
    "fused_cross_entropy": (
        ("logit_bytes_forward", "bytes a logit", 30, 22),
        ("logit_bytes_backward", "bytes a logit", 22, 6),
    ),
    "fused_gradient_accumulation": (
        ("accumulation_bytes", "bytes a weight and micro-batch", 10, 6),
    ),
    "": (
        ("residual_bytes", "bytes a number", 6, 6),
        ("layer_scale_bytes", "bytes a number", 14, 14),
        ("splice_bytes", "bytes a number", 12, 12),
        ("optimizer_bytes", "bytes a parameter that a rank updates", 30, 30),
    ),
}
# Of gradients' and parameters' messages that a pass could hide, with overlapped data parallelism.
_DATA_OVERLAP = 0.8


class Assumptions:
    """The numbers of a plan by name; `all` has them with their sources."""

    def __init__(self, rows: Iterable[Assumption]):
        self.all = tuple(rows)
        self._values = {row.name: row.value for row in self.all}

    def __getitem__(self, name: str) -> float:
        return self._values[name]


def assumptions_for(
    card: Card,
    overrides: Mapping[str, float] | None = None,
    kernels: Collection[str] = (),
) -> Assumptions:
    """Those of a card, and those of every card, with the values of `overrides`.

    Args:
        kernels: names of `nvlm.platform.features.RULES` that are on.

    Raises:
        ConfigError: there is no assumption of such a name, or the value cannot be.
    """
    of_card = (
        ("memory_bytes", float(card.memory_bytes), "bytes"),
        ("peak_flops", card.peak_flops, "FLOP/s, bf16, dense"),
        ("memory_bandwidth", card.memory_bandwidth, "bytes/s"),
        ("link_bandwidth", card.link_bandwidth, "bytes/s of a GPU in one direction, in a node"),
        ("network_bandwidth", card.network_bandwidth, "bytes/s of a GPU, between nodes"),
        ("gpus_per_node", float(card.gpus_per_node), "GPUs"),
    )
    rows = [Assumption(*row, card.source) for row in of_card]
    rows += [Assumption(*row) for row in _GENERAL]
    rows += _of_kernels(kernels)
    known = [row.name for row in rows]
    overrides = overrides or {}
    for name, value in overrides.items():
        _check(name, value, known)
    return Assumptions(
        replace(row, value=overrides[row.name], source="--assume") if row.name in overrides else row
        for row in rows
    )


def _of_kernels(kernels: Collection[str]) -> Iterator[Assumption]:
    for feature, rows in _TRAFFIC.items():
        how = f"; {feature.replace('_', ' ')} {'on' if feature in kernels else 'off'}"
        for name, unit, without, with_kernels in rows:
            value = with_kernels if feature in kernels else without
            yield Assumption(name, value, unit, _COUNTED + how * bool(feature))
    joined = "compiled_norms_and_swiglu" in kernels
    counted = "torch's operations of a decoder layer counted on a CPU, without views"
    if joined:
        counted += "; less those that compiled norms, SwiGLU and a fused rotation join, by hand"
    for name, value in (("forward", 40 if joined else 70), ("backward", 30 if joined else 78)):
        yield Assumption(f"launches_{name}", value, "operations that the host starts", counted)
    overlaps = "overlapped_data_parallelism" in kernels
    yield Assumption(
        "data_overlap",
        _DATA_OVERLAP if overlaps else 0.0,
        "of the messages between data ranks that a pass could hide",
        f"{_GUESS}: they share the card with the pass"
        if overlaps
        else "overlapped data parallelism is off",
    )


def parse_overrides(texts: Iterable[str]) -> dict[str, float]:
    """`NAME=VALUE` as `--assume` takes them.

    Raises:
        ConfigError: one is not of this form.
    """
    overrides = {}
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            overrides[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(
                f"--assume {text}: expected NAME=NUMBER, such as matmul_efficiency=0.7"
            ) from None
    return overrides


def _check(name: str, value: float, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"--assume {name}: no such assumption; {hint}")
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"--assume {name}={value:g}: expected a number from 0")
    if name.endswith(("_bandwidth", "_flops", "_per_node")) and value == 0:
        raise ConfigError(f"--assume {name}=0: expected more than 0")
    if "efficiency" in name and not 0 < value <= 1:
        raise ConfigError(f"--assume {name}={value:g}: expected a share above 0 and at most 1")
