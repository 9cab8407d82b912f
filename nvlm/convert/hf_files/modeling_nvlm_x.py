"""NVLM-X and NVLM-H for transformers: NVLM-D's class with gated cross-attention.

Shape suffixes: n tiles, s tokens per tile, c channels, b prompts, t tokens, k tokens beside.
"""

import torch

# transformers 4 brings along only what this file itself imports: it names every other one.
from .chat import ChatMixin
from .configuration_nvlm_d import NVLM_D_Config
from .configuration_nvlm_x import NVLM_H_Config, NVLM_X_Config
from .connector_mlp import Connector
from .cross_attention import GatedCrossAttention, Holder, Reading
from .image_tiling import build_transform, choose_grid, dynamic_preprocess, load_image
from .modeling_intern_vit import InternVisionModel
from .modeling_nvlm_d import NVLM_D_Model
from .prompts import PromptEncoder
from .prompts_beside import BesidePromptEncoder, PromptIds

__all__ = [
    "BesidePromptEncoder",
    "ChatMixin",
    "Connector",
    "InternVisionModel",
    "NVLM_D_Config",
    "NVLM_H_ForCausalLM",
    "NVLM_H_Model",
    "NVLM_X_ForCausalLM",
    "NVLM_X_Model",
    "PromptEncoder",
    "PromptIds",
    "build_transform",
    "choose_grid",
    "dynamic_preprocess",
    "load_image",
]


class NVLM_X_Model(NVLM_D_Model):
    """`forward` and `generate` take `beside` with images: of each prompt what `build_prompt_ids`
    has as its `beside`. `chat` does all of it."""

    config_class = NVLM_X_Config
    _prompt_encoder_class = BesidePromptEncoder

    def __init__(self, config, use_flash_attn=None):
        super().__init__(config, use_flash_attn)
        self._holder = Holder()
        # `beside` and `attention_mask` of the call in hand.
        self._given = None, None
        language, interval = config.llm_config, config.cross_attention_interval
        decoder = self.language_model.model
        for layer in decoder.layers[interval - 1 :: interval]:
            norm = type(layer.input_layernorm)(language.hidden_size, eps=language.rms_norm_eps)
            num_groups = config.cross_attention_num_key_value_heads
            GatedCrossAttention(language, num_groups, norm, self._holder).join(layer)
        decoder.register_forward_pre_hook(self._holder.take, with_kwargs=True)
        self.post_init()

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None, **kwargs):
        """As `NVLM_D_Model.forward`, with `beside`.

        With the cache of an earlier call (`past_key_values`) tokens without images go on from that
        call's, and see what is beside them.
        """
        self._given = kwargs.pop("beside", None), attention_mask
        self._holder.reading = getattr(kwargs.get("past_key_values"), "nvlm_reading", None)
        output = super().forward(
            pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, **kwargs
        )
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self._holder.reading is not None:
            cache.nvlm_reading = self._holder.reading
        if not torch.is_grad_enabled():  # a backward pass may run layers again
            self._holder.reading = None
        return output

    @torch.no_grad()
    def generate(self, pixel_values=None, input_ids=None, attention_mask=None, **kwargs):
        """As `NVLM_D_Model.generate`, with `beside`."""
        self._given = kwargs.pop("beside", None), attention_mask
        self._holder.reading = None
        try:
            return super().generate(
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=attention_mask,
                **kwargs,
            )
        finally:
            self._holder.reading = None

    def _beside_of(self, prompt):
        return {"beside": [prompt.beside]}

    def _embed(self, input_ids, pixel_values, visual_features):
        """Embeddings of `input_ids`; what is beside them is kept for the layers."""
        if input_ids is None or (pixel_values is None and visual_features is None):
            return super()._embed(input_ids, pixel_values, visual_features)
        beside, attention_mask = self._given
        if beside is None or len(beside) != len(input_ids):
            raise ValueError(
                "images need beside=[ids.beside], one for each prompt, of what build_prompt_ids "
                "returns; chat() does that"
            )
        if visual_features is None:
            visual_features = self.extract_feature(self._as_input(pixel_values))
        is_beside = self._is_beside(input_ids, beside)
        if len(is_beside) != len(visual_features):
            raise ValueError(f"prompts of {len(is_beside)} tiles, and {len(visual_features)} given")
        is_beside = is_beside.to(visual_features.device)
        inside = visual_features[~is_beside] if (~is_beside).any() else None
        embeddings = super()._embed(input_ids, None, inside)
        lengths = [len(one["input_ids"]) for one in beside]
        ids = torch.zeros(len(beside), max(lengths), dtype=torch.long)
        for row, one in zip(ids, beside):
            row[: len(one["input_ids"])] = torch.tensor(one["input_ids"], dtype=torch.long)
        rows = super()._embed(ids, None, visual_features[is_beside]) if max(lengths) else None
        self._holder.reading = (
            rows
            if rows is None
            else _reading(
                rows, lengths, beside, input_ids.shape[1], _first_tokens(attention_mask, beside)
            )
        )
        return embeddings

    def _is_beside(self, input_ids, beside):
        """[n] bool: which of all prompts' tiles stand beside them."""
        parts = []
        for ids, one in zip(input_ids, beside):
            num_inside = int((ids == self.img_context_token_id).sum()) // self.num_image_token
            part = torch.zeros(num_inside + len(one["tiles"]), dtype=torch.bool)
            part[one["tiles"]] = True
            parts.append(part)
        return torch.cat(parts)


class NVLM_X_ForCausalLM(NVLM_X_Model):
    """As `NVLM_D_ForCausalLM`: `generate` gives the prompt and the new tokens."""

    main_input_name = "input_ids"
    _repeats_prompt = True


class NVLM_H_Model(NVLM_X_Model):
    """NVLM-H: see prompts_beside.py."""

    config_class = NVLM_H_Config


class NVLM_H_ForCausalLM(NVLM_H_Model):
    """As `NVLM_D_ForCausalLM`: `generate` gives the prompt and the new tokens."""

    main_input_name = "input_ids"
    _repeats_prompt = True


def _first_tokens(attention_mask, beside):
    """Where each prompt begins in its row: behind the padding."""
    if attention_mask is None:
        return [0] * len(beside)
    return [int(row.bool().int().argmax()) for row in attention_mask]


def _reading(rows_bkc, lengths, beside, num_tokens, first_tokens):
    num_beside = rows_bkc.shape[1]
    follows_bk = torch.arange(num_beside)[None] < torch.tensor(lengths)[:, None]
    sees_btk = torch.zeros(len(beside), num_tokens, num_beside, dtype=torch.bool)
    for sees_tk, one, shift in zip(sees_btk, beside, first_tokens):
        for start, end, first, last in one["sights"]:
            sees_tk[shift + start : shift + end, first:last] = True
    return Reading(rows_bkc, sees_btk, follows_bk)
