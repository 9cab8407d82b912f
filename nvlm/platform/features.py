"""What of a run uses which kernels and settings of its device, decided here and printed at start.

    decide(config, machine, layers)         the whole list, for the start-up
    is_on(name, config, machine, layers)    one rule of it, for who builds that part

Every rule is a pure function of the configuration and of a `Machine` (what was found), so it is
tested without the device. A rule gives the reason why its feature is off, or "" where it is on.
What is one of several rather than on or off is a choice, and made in a file of its own.
This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nvlm.config.schema import RunConfig
from nvlm.errors import ConfigError
from nvlm.platform import environment
from nvlm.platform.attention import choose_attention
from nvlm.platform.layers import why_layers
from nvlm.platform.machine import Machine


@dataclass(frozen=True)
class Situation:
    """What a rule may look at."""

    config: RunConfig
    machine: Machine
    layers: str  # `local` or `transformer_engine`, as `model.layer_implementation` was resolved


@dataclass(frozen=True)
class Feature:
    """A line of the list."""

    name: str
    value: str  # "on", "off", or which of several was chosen
    reason: str = ""  # why off, or why this one

    def __str__(self) -> str:
        return f"{self.name} {self.value}" + (f": {self.reason}" if self.reason else "")


Rule = Callable[[Situation], str]


def why_not_compiled(machine: Machine) -> str:
    """Why functions are not compiled into kernels of their own; "": they are."""
    if not machine.has_gpu:
        return "no GPU"
    missing = [] if machine.has("triton") else ["Triton"]
    missing += [] if machine.c_compiler else ["a C compiler (gcc, clang or $CC)"]
    return f"torch.compile needs {' and '.join(missing)}" if missing else ""


def _compiled_norms_and_swiglu(where: Situation) -> str:
    return why_not_compiled(where.machine)


def _fused_cross_entropy(where: Situation) -> str:
    """Megatron-core's, which it compiles."""
    if where.config.train.precision == "fp32":
        return "it rounds gradients to bf16"
    return why_not_compiled(where.machine)


def _fused_rotation(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    return "" if where.layers == "transformer_engine" else "needs Transformer Engine's layers"


def _fused_gradient_accumulation(where: Situation) -> str:
    """Of both implementations, since the output layer is Megatron-core's own in both."""
    if not where.machine.has_gpu:
        return "no GPU"
    has = where.machine.has("fused_weight_gradient_mlp_cuda")
    return "" if has else "needs Apex with its extension fused_weight_gradient_mlp_cuda"


def _overlapped_data_parallelism(where: Situation) -> str:
    return "" if where.machine.has_gpu else "no GPU"


def _tensor_parallel_overlap(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    return (
        "Transformer Engine's userbuffers are not set up here: that needs GPUs to be tried on, and "
        "there were none"
    )


def _encoder_cuda_graphs(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    return "the number of tiles differs from call to call"


def _fp8(where: Situation) -> str:
    recipe = where.config.train.fp8.recipe
    if recipe == "none":
        return "train.fp8.recipe is none"
    capability = where.machine.capability
    if capability is None:
        return "no GPU"
    if where.layers != "transformer_engine":
        return "needs Transformer Engine's layers"
    oldest = (9, 0) if recipe == "blockwise" else (8, 9)
    if capability >= oldest:
        return ""
    return (
        f"{recipe} needs sm{oldest[0]}{oldest[1]} or later, and this GPU is "
        f"sm{capability[0]}{capability[1]}"
    )


def check_fp8(config: RunConfig, machine: Machine, layers: str) -> None:
    """Refuse 8-bit training where it was asked for and cannot be had.

    Raises:
        ConfigError: with the reason.
    """
    recipe = config.train.fp8.recipe
    if recipe != "none" and (reason := _fp8(Situation(config, machine, layers))):
        raise ConfigError(f"train.fp8.recipe {recipe}: {reason}; use none")


def check_context(config: RunConfig, machine: Machine, layers: str) -> None:
    """Refuse context parallelism where no attention shares rows among GPUs.

    Raises:
        ConfigError: with the reason.
    """
    context = config.parallel.context
    if context == 1 or not machine.has_gpu:
        return
    chosen = choose_attention(machine, layers, config.train.precision)
    if chosen.implementation != "transformer_engine":
        reason = chosen.reason or "model.layer_implementation is local"
        raise ConfigError(
            f"parallel.context {context} needs Transformer Engine's attention on GPUs, and here "
            f"attention is torch's: {reason}; use parallel.context 1"
        )


def _layers(where: Situation) -> Feature:
    model, precision = where.config.model, where.config.train.precision
    reason = why_layers(where.machine, model.layer_implementation, precision)
    return Feature("layers", where.layers, reason)


def _attention(where: Situation) -> Feature:
    precision = where.config.train.precision
    chosen = choose_attention(
        where.machine,
        where.layers,
        precision,
        sees_both_ways=where.config.model.sees_both_ways,
        attention_dropout=where.config.train.attention_dropout,
    )
    return Feature("attention", chosen.kernel, chosen.reason)


def _optimizer(where: Situation) -> Feature:
    """Megatron-core's order; the last is nvlm/megatron/group_step_adam.py."""
    for package, name in (("transformer_engine", "Transformer Engine"), ("apex", "Apex")):
        if where.machine.has(package):
            return Feature("optimizer", f"{name}'s FusedAdam")
    return Feature("optimizer", "torch's fused AdamW", "neither Transformer Engine nor Apex")


def _pinned_memory(where: Situation) -> str:
    return "" if where.machine.has_gpu else "no GPU"


def _copies_ahead(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    return "" if where.config.data.num_workers else "data.num_workers is 0: nothing is read ahead"


def _single_hardware_queue(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    value = where.machine.environment.get(environment.QUEUES, "")
    return "" if value == "1" else f"{environment.QUEUES} is {value or 'not set'}"


def _expandable_segments(where: Situation) -> str:
    if not where.machine.has_gpu:
        return "no GPU"
    found = {
        name: where.machine.environment[name]
        for name in environment.ALLOCATOR
        if name in where.machine.environment
    }
    if any(environment.EXPANDABLE in value for value in found.values()):
        return ""
    return "; ".join(f"{name} is {value}" for name, value in found.items()) or "not set"


CHOICES: tuple[Callable[[Situation], Feature], ...] = (_layers, _attention, _optimizer)


# One line a feature, in the order in which they are printed. Names are printed with spaces.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "pinned_memory": _pinned_memory,
        "copies_ahead": _copies_ahead,
        "compiled_norms_and_swiglu": _compiled_norms_and_swiglu,
        "fused_cross_entropy": _fused_cross_entropy,
        "fp8": _fp8,
        "fused_rotation": _fused_rotation,
        "fused_gradient_accumulation": _fused_gradient_accumulation,
        "overlapped_data_parallelism": _overlapped_data_parallelism,
        "tensor_parallel_overlap": _tensor_parallel_overlap,
        "encoder_cuda_graphs": _encoder_cuda_graphs,
        "single_hardware_queue": _single_hardware_queue,
        "expandable_segments": _expandable_segments,
    }
)


def is_on(name: str, config: RunConfig, machine: Machine, layers: str) -> bool:
    """Whether feature `name` of `RULES` is on."""
    return not RULES[name](Situation(config, machine, layers))


def decide(config: RunConfig, machine: Machine, layers: str) -> list[Feature]:
    """All choices, then all features in the order of `RULES`."""
    situation = Situation(config, machine, layers)
    lines = [choose(situation) for choose in CHOICES]
    for name, rule in RULES.items():
        reason = rule(situation)
        lines.append(Feature(name.replace("_", " "), "off" if reason else "on", reason))
    return lines
