"""A tiny run whose modules have rates of their own."""

from __future__ import annotations

from nvlm.config import load_config

LR, WEIGHT_DECAY = 1e-3, 0.1
PATTERNS = (
    'train.optimizer.lr_multipliers={"vision_projection.*": 0.5, "*.linear_fc2.weight": 0.1}',
    "train.optimizer.weight_decay_multipliers="
    '{"*.linear_fc2.*": 3.0, "language_model.embedding.*": 0.0, "language_model.decoder.*": 0.5}',
    f"train.optimizer.lr={LR}",
    "train.optimizer.min_lr=1e-4",
    f"train.optimizer.weight_decay={WEIGHT_DECAY}",
    "train.steps=20",
)


def make_config(*overrides: str):
    sizes = ["model.vision.num_layers=1", "model.language.num_layers=1", "train.precision=fp32"]
    return load_config("configs/run/tiny/sft.yaml", [*sizes, "stage.freeze=[]", *overrides])


def group_of(optimizer, parameter) -> dict:
    """The parameter group that Megatron-core's distributed optimizer put `parameter` into."""
    inner = getattr(optimizer, "chained_optimizers", [optimizer])[0]
    index, _ = inner.model_param_group_index_map[parameter]
    return optimizer.param_groups[index]
