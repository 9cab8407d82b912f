"""Buffers of every pipeline stage at layouts of several processes, built without their memory."""

from __future__ import annotations

import pytest
from helpers import small_model, variants

from nvlm.model.nvlm_d import build_model_chunks
from nvlm.parallel.stand_in import stand_in
from nvlm.platform.meta import OnMetaDevice
from nvlm.sizes.memory import stage_memory
from nvlm.train.optim import wrap_data_parallel


@pytest.mark.parametrize("shared", [[], variants.SHARED_EMBEDDINGS], ids=["own", "shared"])
@pytest.mark.parametrize(
    "layout",
    [["parallel.tensor=2"], ["parallel.tensor=2", "parallel.pipeline=2"],
     ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.layout=[[0, 1], [2, 1]]"],
     ["parallel.tensor=2", "parallel.pipeline=2", "parallel.vision=tile_parallel"]],
)  # fmt: skip
def test_buffers_of_each_stage(layout: list[str], shared: list[str]):
    config = small_model.small_config(
        "model.language.num_layers=4", "stage.freeze=['vision_model.*']", *layout, *shared
    )
    for stage in range(config.parallel.pipeline):
        with stand_in(config, stage) as parallel, OnMetaDevice():
            bare = build_model_chunks(config, parallel)
            for chunk in bare:
                for name, parameter in chunk.named_parameters():
                    parameter.requires_grad_(not name.startswith("vision_model."))
            wrapped = wrap_data_parallel(bare, parallel)
            buffers = [buffer for chunk in wrapped for buffer in chunk.buffers]
            frozen = [p for chunk in bare for p in chunk.parameters() if not p.requires_grad]
        size = sum(buffer.grad_data.numel() for buffer in buffers)
        memory = stage_memory(config, stage, data_parallel_size=1)
        assert memory.gradients == 4 * size
        assert memory.parameters == 4 * (size + sum(p.numel() for p in frozen))
