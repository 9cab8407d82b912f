"""A dense checkpoint -> one whose decoder has experts: sparse upcycling (Komatsuzaki et al., 2022).

Each expert of a layer is a copy of the layer's MLP, and the router is new. A token's shares of its
`top_k` experts add up to 1, so that the model computes what the dense one did until it trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nvlm.checkpoint_io import read_config
from nvlm.config.changed import changed
from nvlm.config.experts import ExpertsConfig
from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.convert.blocks import Buffer, row_blocks
from nvlm.convert.from_hf import random_chunk, stacked_chunk
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.megatron.writer import Chunk
from nvlm.convert.rewrite import Rewrite
from nvlm.errors import ConvertError
from nvlm.rows import STACKED_EXPERTS, Parameter, Place
from nvlm.sizes.alignment import stage_rows
from nvlm.sizes.parameters import parameter_table, parameters_by_key


def upcycle(
    checkpoint: str | Path, out: str | Path, experts: ExpertsConfig, seed: int | None = None
) -> Path:
    """Write checkpoint folder `out`, the model with experts; returns `out`.

    Values are copied bit for bit, a few rows at a time. The optimizer's state and the position in
    the data stay behind. Under torchrun every process calls this and each writes its share.

    Args:
        checkpoint: a checkpoint that any layout wrote, or a run folder (its latest checkpoint).
        out: a new folder, or a checkpoint to be replaced once the new one is whole.
        experts: as wide as the model's MLP.
        seed: of the routers' weights, drawn with `model.language.init_std`; None: `train.seed` of
            the checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint, or `out` cannot be written.
        ConfigError: there can be no such experts.
        ConvertError: the checkpoint has experts or adapters, lacks tensors or holds NaN; `out` is
            something else, or its disk has no room. Nothing is written then.
    """
    rewrite = Rewrite(checkpoint, out)
    dense = read_config(rewrite.checkpoint)
    config = _with_experts(dense, experts, seed, rewrite.checkpoint)
    beside = stage_rows(dense)
    table = [*parameter_table(config.model), *beside]
    origins = parameters_by_key(dense.model) | {row.key: row for row in beside}
    rewrite.check_has(origins)
    chunks = list(_chunks(rewrite.reader, table, origins, config))
    source = {"upcycled": {"folder": str(rewrite.checkpoint)}}
    return rewrite.write(chunks, table, config, "Copying experts", source)


def _with_experts(
    dense: RunConfig, experts: ExpertsConfig, seed: int | None, checkpoint: Path
) -> RunConfig:
    language = dense.model.language
    if language.moe is not None:
        raise ConvertError(f"{checkpoint}: has {language.moe.num_experts} experts already")
    if dense.stage.adapters:
        raise ConvertError(
            f"{checkpoint}: has adapters: put them into the model first (`nvlm convert merge`)"
        )
    if experts.ffn_hidden_size not in (None, language.ffn_hidden_size):
        raise ConvertError(
            f"experts {experts.ffn_hidden_size} wide cannot be copies of an MLP that is "
            f"{language.ffn_hidden_size} wide"
        )
    changes = {
        "model.language.moe": experts,
        # The layout of the run that wrote it may be none for experts, and says nothing of weights.
        "parallel": ParallelConfig(),
        "train.fp8.recipe": "none",
        "train.seed": dense.train.seed if seed is None else seed,
    }
    return changed(dense, changes, str(checkpoint))


def _chunks(
    reader: CheckpointReader,
    table: list[Parameter],
    origins: dict[str, Parameter],
    config: RunConfig,
) -> Iterator[Chunk]:
    buffer = Buffer()
    for row in table:
        origin = origins.get(row.key.replace(f"mlp{STACKED_EXPERTS}", "mlp."))
        for place in row.places():
            if origin is None:  # a router
                dtype = reader.dtype(f"{row.key.partition('.mlp.')[0]}.mlp.linear_fc1.weight")
                yield random_chunk(row, place, config, dtype)
                continue
            dtype, source = reader.dtype(origin.key), Place(place.layer)
            for start, stop in row_blocks(row.shape, dtype):
                make = partial(reader.read, origin, source, start, stop, buffer)
                yield stacked_chunk(row, place, start, stop, dtype, make)
