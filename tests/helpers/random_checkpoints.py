"""Writes three checkpoints of the tiny SFT run; run as a script, it needs Megatron-core.

`first`: random weights. `trained`: all that SFT trains moved, the frozen ViT as it was.
`thawed`: as `trained`, and one value of the ViT moved by the smallest step there is.
"""

import sys
from pathlib import Path

import torch

from helpers.paths import REPOSITORY
from nvlm.config import RunConfig, load_config
from nvlm.parallel.groups import initialize, shut_down


def write_checkpoints(folder: Path, config: RunConfig) -> None:
    parallel = initialize(config)
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.initialize import initialize_weights

    model = build_model(config, parallel)
    initialize_weights(model, config)
    write_checkpoint(folder / "first", model.sharded_state_dict(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vision_model."):
                parameter.add_(0.01)
    write_checkpoint(folder / "trained", model.sharded_state_dict(), config)
    with torch.no_grad():
        value = model.vision_model.embeddings.class_embedding.view(-1)[3]
        value.copy_(torch.nextafter(value, torch.tensor(torch.inf)))
    write_checkpoint(folder / "thawed", model.sharded_state_dict(), config)
    shut_down()


if __name__ == "__main__":
    write_checkpoints(Path(sys.argv[1]), load_config(REPOSITORY / "configs/run/tiny/sft.yaml"))
