"""What timm's plain ViTs are made of, by name, from the file that scripts/timm_table writes."""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("timm_models.json")
_MOST_SIMILAR = 4


@dataclass(frozen=True)
class TimmModel:
    """One of timm's `VisionTransformer`s.

    class_token, num_registers: tokens in front of the patches.
    positions: what has learned positions: `all` tokens, the `patches`, or `none`.
    patch_norm: a norm of each patch's embedding, before positions are added.
    pre_norm: a norm before the first layer (CLIP).
    linear_bias: of attention's output and of the MLP.
    mlp: `mlp`, `swiglu` (gate and up are two matrices) or `packed_swiglu` (one matrix).
    layer_scale: first value of the factors on each layer's two outputs; 0: there are none.
    pixel_mean, pixel_std: of RGB values in 0..1, of the weights that the name stands for.
    """

    image_size: int
    patch_size: int
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    class_token: bool
    num_registers: int
    positions: str
    patch_bias: bool
    patch_norm: bool
    pre_norm: bool
    norm: str
    norm_epsilon: float
    qkv_bias: bool
    linear_bias: bool
    mlp: str
    activation: str
    layer_scale: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def num_prefix_tokens(self) -> int:
        return self.class_token + self.num_registers


@functools.cache
def timm_model(name: str) -> TimmModel | None:
    """Of timm's `MODEL` or `MODEL.WEIGHTS`; None: timm has none, or not of these weights, or it is
    no plain ViT (`why_unknown` says which)."""
    model, _, weights = name.partition(".")
    row = _table()["models"].get(model)
    if row is None or weights not in row["weights"]:
        return None
    mean, std = _table()["statistics"][row["weights"][weights]]
    numbers = {key: value for key, value in row.items() if key != "weights"}
    return TimmModel(**numbers, pixel_mean=tuple(mean), pixel_std=tuple(std))


def why_unknown(name: str) -> str:
    """What is wrong with a name that `timm_model` does not know."""
    table, (model, _, weights) = _table(), name.partition(".")
    if model in table["models"]:
        known = [tag for tag in table["models"][model]["weights"] if tag]
        return f"timm has no weights {weights} of {model} at its image size; {', '.join(known)} are"
    for reason, names in table["refused"].items():
        if model in names:
            return f"{model} is no plain ViT: {reason}"
    similar = difflib.get_close_matches(model, table["models"], n=_MOST_SIMILAR, cutoff=0.5)
    hint = f"; similar ones are {', '.join(similar)}" if similar else ""
    return f"timm {table['timm']} has no model of this name{hint}"


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(_FILE.read_text())
