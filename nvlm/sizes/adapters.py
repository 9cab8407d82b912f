"""Adapters: which matrices have one, and their rows in the table of parameters of a run.

`nvlm.sizes.parameters` has the model's own; what trains beside it depends on the run
(`stage.adapters`). A part of the model with adapters trains nothing else: `stage.freeze` speaks of
parts without them, and never of adapters.

An adapter of a matrix W [rows, inputs] adds `scale * B @ A` to it, A [rank, inputs] and B [rows,
rank]. Where W is several of Hugging Face's matrices, each has an A of its own, one below the other,
so that peft's adapters of those are the same numbers: rows of B go with the A of their part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from nvlm.config.adapters import NF4, NF4_BLOCK, AdapterConfig
from nvlm.config.schema import ModelConfig, RunConfig
from nvlm.errors import ConfigError
from nvlm.rows import ADAPTER, ZEROS, Constant, Normal, Parameter, Place, RowNorms
from nvlm.sizes.alignment import stage_rows
from nvlm.sizes.parameters import LANGUAGE, VISION, is_frozen, parameter_table

KEY = "stage.adapters"
LORA_A, LORA_B, MAGNITUDE = "lora_a", "lora_b", "magnitude"


@dataclass(frozen=True)
class Adapter:
    """Of one matrix of one layer.

    matrix: its row; `place` is that of its stack.
    settings: with an alpha, whether the configuration says it or not.
    num_blocks, part_rows: W's rows come in so many equal blocks, and each has so many rows of every
        part. Of queries, keys and values a block is a query group.
    """

    matrix: Parameter
    place: Place
    settings: AdapterConfig
    num_blocks: int
    part_rows: tuple[int, ...]

    @property
    def module(self) -> str:
        """Whole-model name of the linear layer."""
        return self.matrix.name(self.place).removesuffix(".weight")

    @property
    def name(self) -> str:
        return f"{self.module}.{ADAPTER}"

    @property
    def alpha(self) -> float:
        assert self.settings.alpha is not None
        return self.settings.alpha

    @property
    def num_parts(self) -> int:
        return len(self.part_rows)

    @property
    def shares_parts(self) -> bool:
        """Whether tensor-parallel ranks hold a share of each part: of gate and of up."""
        return self.num_blocks == 1 and self.num_parts == 2

    def local_blocks(self, tensor_size: int) -> tuple[int, tuple[int, ...]]:
        """`num_blocks` and `part_rows` of what a tensor-parallel rank holds."""
        if self.matrix.split_axis != 0:
            return self.num_blocks, self.part_rows
        if self.num_blocks > 1:
            return self.num_blocks // tensor_size, self.part_rows
        return 1, tuple(rows // tensor_size for rows in self.part_rows)

    def parameters(self) -> Iterator[Parameter]:
        """Rows of the table. Layers are not stacked: each may have another rank, or none."""
        rows, inputs = self.matrix.shape
        rank, split, zero = self.settings.rank, self.matrix.split_axis, self.matrix.zero_heads

        def row(
            key: str, shape: tuple[int, ...], initial: Normal | Constant | RowNorms, axis: int
        ) -> Parameter:
            """`axis`: the one along which the tensor is as long as the matrix."""
            return replace(
                self.matrix,
                key=f"{self.name}.{key}",
                shape=shape,
                initial=initial,
                split_axis=axis if split == axis else None,
                num_layers=None,
                layer_numbers=None,
                of_layer=self.place.layer,
                zero_heads=zero if zero is not None and zero.axis == axis else None,
            )

        # The spread of the uniform numbers that peft draws.
        normal = Normal((3 * inputs) ** -0.5)
        yield row(LORA_A, (self.num_parts * rank, inputs), normal, 1)
        yield row(LORA_B, (rows, rank), ZEROS, 0)
        if self.settings.dora:
            yield row(MAGNITUDE, (rows,), RowNorms(), 0)


def adapters_of(config: RunConfig) -> list[Adapter]:
    """In the order of the forward pass.

    Raises:
        ConfigError: a pattern matches no matrix that can have an adapter, two patterns match the
            same one, or an adapter cannot be where it is asked for.
    """
    return list(_adapters(config.model, tuple(config.stage.adapters.items())))  # type: ignore[arg-type]


def have_same_tensors(ours: Sequence[Adapter], theirs: Sequence[Adapter]) -> bool:
    """Whether they are of the same matrices and mean the same, however the matrices are held."""

    def plain(adapters: Sequence[Adapter]) -> list[Adapter]:
        held = {"quantization": "none"}
        return [replace(a, settings=a.settings.model_copy(update=held)) for a in adapters]

    return plain(ours) == plain(theirs)


def quantized(config: RunConfig) -> list[Adapter]:
    """The adapters whose matrices are held in 4 bits."""
    return [adapter for adapter in adapters_of(config) if adapter.settings.quantization == NF4]


def quantization_problems(config: RunConfig) -> Iterator[str]:
    """What keeps matrices from being held in 4 bits, each in one line."""
    for adapter in quantized(config):
        inputs = adapter.matrix.local_shape(config.parallel.tensor)[1]
        where = f"{KEY}: quantization {NF4} of {adapter.module}.weight"
        if inputs % NF4_BLOCK:
            yield (
                f"{where}: its rows have {inputs} numbers on a process, which are no whole blocks "
                f"of {NF4_BLOCK}: use another parallel.tensor, or leave it to a pattern without"
            )
        if not is_frozen(adapter.matrix.name(adapter.place), frozen_patterns(config)):
            yield f"{where}: stage.freeze lets the matrix itself train"


def run_parameter_table(config: RunConfig) -> list[Parameter]:
    """The rows of the model, of what the stage has beside it, and of its adapters."""
    own = [row for adapter in adapters_of(config) for row in adapter.parameters()]
    return [*parameter_table(config.model), *stage_rows(config), *own]


def run_parameters_by_key(config: RunConfig) -> dict[str, Parameter]:
    """Name in checkpoints -> row, adapters included."""
    return {row.key: row for row in run_parameter_table(config)}


def run_parameters_by_name(config: RunConfig) -> dict[str, Parameter]:
    """Name in the whole model, layer by layer -> row, adapters included."""
    return {row.name(place): row for row in run_parameter_table(config) for place in row.places()}


def frozen_patterns(config: RunConfig) -> tuple[str, ...]:
    """What `is_frozen` asks for: all of the parts that have adapters, and `stage.freeze`."""
    parts = dict.fromkeys(adapter.matrix.component for adapter in adapters_of(config))
    return (*(f"{part}.*" for part in parts), *config.stage.freeze)


@lru_cache(maxsize=16)
def _adapters(
    model: ModelConfig, wanted: tuple[tuple[str, AdapterConfig], ...]
) -> tuple[Adapter, ...]:
    if not wanted:
        return ()
    found: list[Adapter] = []
    problems: list[str] = []
    used: set[str] = set()
    matrices = [row for row in parameter_table(model) if can_be_adapted(row)]
    for row in matrices:
        for place in row.places():
            name = row.name(place)
            patterns = [pattern for pattern, _ in wanted if fnmatchcase(name, pattern)]
            used.update(patterns)
            if len(patterns) > 1:
                problems.append(f"{KEY}: {' and '.join(map(repr, patterns))} both match {name}")
            elif patterns:
                settings = dict(wanted)[patterns[0]].with_alpha()
                found.append(Adapter(row, place, settings, *_parts(model, row)))
    problems += _of_experts(model, wanted)
    if problems:
        raise ConfigError(*problems[:3])
    if unmatched := [repr(pattern) for pattern, _ in wanted if pattern not in used]:
        modules = dict.fromkeys(f"{row.component}.*.{row.key.split('.')[-2]}" for row in matrices)
        problems.append(
            f"{KEY}: {', '.join(unmatched)} matches no matrix of a linear layer; there are "
            f"{', '.join(f'{module}.weight' for module in modules)}"
        )
    problems += _zero_rows(found)
    if problems:
        raise ConfigError(*problems[:3])
    return tuple(found)


def _of_experts(model: ModelConfig, wanted: tuple[tuple[str, AdapterConfig], ...]) -> Iterator[str]:
    """Experts have none: Hugging Face keeps all of a layer's in one tensor, and peft no module of
    each beside which an adapter could be saved."""
    rows = [row for row in parameter_table(model) if row.num_experts is not None]
    names = [row.name(place) for row in rows for place in row.places()]
    for pattern, _ in wanted:
        if found := next((name for name in names if fnmatchcase(name, pattern)), None):
            yield (
                f"{KEY}: {pattern!r} matches {found}: experts have no adapters, as peft could not "
                f"save them; name attention, '{LANGUAGE}.*.self_attention.linear_*.weight', and "
                f"the MLPs of layers without experts, '{LANGUAGE}.*.mlp.linear_*.weight'"
            )


def can_be_adapted(row: Parameter) -> bool:
    """Matrices of Megatron-core's column- and row-parallel linear layers within the model."""
    _, _, module = row.key.removesuffix(".weight").rpartition(".")
    is_linear = row.key.endswith(".weight") and module.startswith("linear_")
    is_one = len(row.shape) == 2 and row.num_experts is None
    return is_linear and is_one and row.split_axis is not None


def _parts(model: ModelConfig, row: Parameter) -> tuple[int, tuple[int, ...]]:
    """Blocks of rows, and rows of each of Hugging Face's matrices in a block."""
    language = model.language
    if row.component == LANGUAGE and row.key.endswith("self_attention.linear_qkv.weight"):
        per_group = language.num_attention_heads // language.num_query_groups
        width = language.head_dim
        return language.num_query_groups, (per_group * width, width, width)
    if row.component == LANGUAGE and row.key.endswith("linear_fc1.weight"):
        return 1, (row.shape[0] // 2,) * 2
    return 1, (row.shape[0],)


def _zero_rows(adapters: list[Adapter]) -> Iterator[str]:
    """Rows that are zero have no direction, of which DoRA speaks; peft divides by their length."""
    for adapter in adapters:
        zero = adapter.matrix.zero_heads
        has_zero_rows = zero is not None and zero.axis == 0 and adapter.matrix.num_zero > 0
        if adapter.settings.dora and has_zero_rows:
            yield (
                f"{KEY}: dora for {adapter.module}.weight: its rows of stored heads beyond "
                f"model.vision.num_attention_heads are zero and have no direction: leave "
                f"{VISION}'s linear_qkv to a pattern with dora false"
            )


def by_module(config: RunConfig) -> Mapping[str, Adapter]:
    """Whole-model name of a linear layer -> its adapter."""
    return {adapter.module: adapter for adapter in adapters_of(config)}
