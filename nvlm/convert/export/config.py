"""The JSON files of an export: what the model is, how it generates, how images are prepared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from nvlm.config.connectors.mlp import MLPConfig
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import IMAGENET_MEAN, IMAGENET_STD, EncoderSettings
from nvlm.config.encoders.side_by_side import SideBySideConfig
from nvlm.config.schema import RunConfig
from nvlm.convert.hf.architectures import MODEL_TYPES, nvlm_architecture
from nvlm.convert.hf.values import (
    connector_values,
    cross_attention_values,
    language_architecture,
    language_values,
    plain_vision_values,
    prompt_values,
    side_by_side_values,
    vision_architecture,
    vision_values,
)
from nvlm.data.text.chat_format import CHATML, ChatFormat
from nvlm.errors import ConvertError

# What servers for the released NVLM-D build without being told (docs/serving.md has the sources).
RELEASED_PROJECTOR_EPSILON = 1e-5
RELEASED_NUM_DUMMY_HEADS = 7
RELEASED_IMAGE_TOKEN = "<|vision_pad|>"
RELEASED_IMAGE_SIZE = 448
RELEASED_MAX_NUM_TILES = 6
# `stage.image_boundary` -> which vLLM feeds the token ids that such a model was trained on, and
# what the others do to it (docs/serving.md).
VLLM_BOUNDARIES = {
    "block": (
        "vLLM from 0.29 on feeds what it was trained on; earlier ones make one token of the end of "
        "`</Image>` and the newline after it, where it saw two"
    ),
    "merged": (
        "trained with stage.image_boundary merged: the end of `</Image>` and the newline after it "
        "are one token, as vLLM up to 0.28 feeds them; vLLM from 0.29 on feeds two, which changes "
        "answers; and none takes a question that begins with a newline or an image in the middle "
        "of a line: serve it with transformers, or with vLLM up to 0.28"
    ),
    "separate": (
        "trained with stage.image_boundary separate: `<Image>` and the first tile tag were "
        "tokenised apart; no vLLM feeds that: it tokenises `<Image><tile_1>` as one text, and from "
        "0.29 on the newline after `</Image>` by itself, so that its answers can differ from "
        "those of `chat`"
    ),
}


def model_config(
    config: RunConfig,
    dtype: str,
    image_token_id: int,
    eos_token_id: int,
    pad_token_id: int | None,
    bos_token_id: int | None = None,
    chat: ChatFormat = CHATML,
) -> dict[str, Any]:
    """`config.json`, with the released model's keys and ours (see configuration_nvlm_d.py).

    Args:
        dtype: `float32` or `bfloat16`.
        image_token_id: id of `model.image_token`.
        eos_token_id: id of the token that ends a turn.
        pad_token_id: the tokenizer's padding id, if it has one.
        bos_token_id: id of the token that begins a sequence, if one does.
        chat: the tokenizer's, in which conversations are written.
    """
    vision, language = config.model.vision, config.model.language
    architecture = language_architecture(language)
    # The data type twice: transformers reads `dtype` from 4.56 on, `torch_dtype` before.
    dtypes = {"dtype": dtype, "torch_dtype": dtype}
    name = nvlm_architecture(config.model)
    module = "nvlm_d" if config.model.fusion == "decoder_only" else "nvlm_x"
    return {
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"configuration_{module}.{name}_Config",
            "AutoModel": f"modeling_{module}.{name}_Model",
            "AutoModelForCausalLM": f"modeling_{module}.{name}_ForCausalLM",
        },
        "model_type": name,
        **dtypes,
        "force_image_size": vision.image_size,
        "ps_version": "v2",
        "select_layer": -1,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
        "img_context_token_id": image_token_id,
        **connector_values(config.model),
        **cross_attention_values(config.model),
        **prompt_values(config),
        "template": chat.name,
        "chat_format": {key: value for key, value in asdict(chat).items() if key != "name"},
        "llm_config": {
            "architectures": [architecture],
            "model_type": MODEL_TYPES[architecture],
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            **dtypes,
            "eos_token_id": eos_token_id,
            "initializer_range": 0.02,
            "pad_token_id": pad_token_id,
            "use_cache": True,
            **language_values(language),
        },
        "vision_config": _vision_config(vision, dtypes),
    }


def _vision_config(vision: EncoderSettings, dtypes: dict[str, str]) -> dict[str, Any]:
    if isinstance(vision, SideBySideConfig):
        return {
            "architectures": [vision_architecture(vision)],
            "model_type": "nvlm_side_by_side",
            **dtypes,
            "encoders": [_vision_config(one, dtypes) for one in vision.encoders],
            **side_by_side_values(vision),
        }
    if not isinstance(vision, InternViTConfig):
        return {
            "architectures": [vision_architecture(vision)],
            "model_type": f"nvlm_{vision.kind}",
            **dtypes,
            **plain_vision_values(vision),
        }
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        **dtypes,
        "initializer_factor": vision.layer_scale_init,
        "initializer_range": vision.init_std,
        "num_channels": 3,
        "num_stored_attention_heads": vision.num_stored_attention_heads,
        **vision_values(vision),
    }


def generation_config(stop_ids: Collection[int], pad_token_id: int | None) -> dict[str, Any]:
    """`generation_config.json`: greedy, until one of `stop_ids`."""
    stops = sorted(stop_ids)
    eos_token_id = stops[0] if len(stops) == 1 else stops
    return {"do_sample": False, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}


def preprocessor_config(vision: EncoderSettings) -> dict[str, Any]:
    """`preprocessor_config.json`, as the released model has it: one tile's preparation."""
    image_size, (mean, std) = vision.image_size, vision.pixel_statistics
    return {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": 3,
        "size": image_size,
    }


def check_tiles(config: RunConfig) -> None:
    """Raise `ConvertError` for tiles that exported files cannot cut, and tags they cannot write."""
    if config.stage.tiling != "stretch":
        raise ConvertError(
            f"stage.tiling {config.stage.tiling}: exported models, and servers of NVLM-D, resize "
            "an image to its grid and pad nothing; use this checkpoint with `nvlm generate`, "
            "`nvlm serve` and `nvlm evaluate`"
        )
    if config.stage.has_soft_tags:
        raise ConvertError(
            "stage.tile_tags soft: exported models, and servers of NVLM-D, write tags as text; use "
            "this checkpoint with `nvlm generate`, `nvlm serve` and `nvlm evaluate`"
        )
    if config.stage.alignment is not None:
        raise ConvertError(
            "stage.alignment: exported models have no vectors of alignment at the beginning of a "
            "prompt; use this checkpoint with `nvlm generate`, `nvlm serve` and `nvlm evaluate`"
        )
    if config.stage.tile_tags not in ("none", "1d"):
        raise ConvertError(
            f"stage.tile_tags {config.stage.tile_tags}: exported models know `none` and `1d`, "
            "since they are told how many tiles an image has and not in what grid; use this "
            "checkpoint with `nvlm generate` and `nvlm evaluate`"
        )


def check_switches(config: RunConfig) -> None:
    """Raise `ConvertError` for decoders that the exported modelling files do not compute."""
    use = "use this checkpoint with `nvlm generate`, `nvlm serve` and `nvlm evaluate`"
    weights = config.model.language.visual_weights
    if weights != "none":
        raise ConvertError(
            f"model.language.visual_weights {weights}: exported models have one set of weights for "
            f"text and images; {use}"
        )
    if config.model.deepstack != "none":
        raise ConvertError(
            f"model.deepstack {config.model.deepstack}: exported models give features to the "
            f"decoder's first layer alone; {use}"
        )
    if config.model.reads_levels_in_turn:
        raise ConvertError(
            "model.cross_attention.levels in_turn: layers of exported models read one level of the "
            f"encoder all; {use}"
        )
    if config.model.sees_both_ways:
        raise ConvertError(
            f"model.visual_attention bidirectional: exported models are causal; {use}"
        )


def serving_differences(config: RunConfig) -> list[str]:
    """What servers for the released NVLM-D assume that is not so of this model, a clause each.

    The modelling files inside the export follow the training in all of these, so transformers does,
    and VLMEvalKit wherever it leaves the matter to them.
    """
    prompts = _prompt_differences(config)
    if config.model.fusion == "decoder_only":
        return [*_load_differences(config), *prompts]
    name = nvlm_architecture(config.model)
    obstacle = (
        f"vLLM cannot load it: it has no {name}, whose decoder reads tiles by cross-attention; "
        "the files of this folder do it with transformers"
    )
    return [obstacle, *(text for text in prompts if text.startswith("VLMEvalKit"))]


def _load_differences(config: RunConfig) -> list[str]:
    """What vLLM cannot load, or computes otherwise."""
    vision, projector = config.model.vision, config.model.connector
    width = config.model.language.ffn_hidden_size
    differences = []
    if isinstance(vision, SideBySideConfig):
        return [
            "vLLM cannot load it: its NVLM-D has one InternViT, this model encoders side by side"
        ]
    if not isinstance(vision, InternViTConfig):
        return ["vLLM cannot load it: its NVLM-D has an InternViT, this model another encoder"]
    expected_heads = vision.num_attention_heads + RELEASED_NUM_DUMMY_HEADS
    if vision.num_stored_attention_heads != expected_heads:
        differences.append(
            f"vLLM cannot load it: the vision encoder stores {vision.num_stored_attention_heads} "
            f"heads, and vLLM's NVLM_D expects {expected_heads}, {RELEASED_NUM_DUMMY_HEADS} more "
            "than the real ones"
        )
    if vision.feature_layers:
        differences.append(
            "vLLM cannot load it: the connector reads hidden states of several of the encoder's "
            "layers, and vLLM's NVLM_D gives it those of the last"
        )
    if not isinstance(projector, MLPConfig) or projector.pixel_shuffle != 2:
        shuffle = " with pixel_shuffle 1 or 4" if isinstance(projector, MLPConfig) else ""
        differences.append(
            f"vLLM cannot load it: the connector is of kind {projector.kind}{shuffle}, and vLLM "
            "builds an MLP behind 2 x 2 patches"
        )
        return differences
    if projector.ffn_hidden_size != width:
        differences.append(
            f"vLLM cannot load it: the projector is {projector.ffn_hidden_size} wide, and vLLM "
            f"builds it as wide as the language model's feed-forward, {width}"
        )
    if projector.norm_epsilon != RELEASED_PROJECTOR_EPSILON:
        differences.append(
            f"the projector's LayerNorm was trained with epsilon {projector.norm_epsilon:g}; "
            f"vLLM computes with {RELEASED_PROJECTOR_EPSILON:g}"
        )
    return differences


def _prompt_differences(config: RunConfig) -> list[str]:
    """What of images and their tags servers write otherwise."""
    stage, image_size = config.stage, config.model.vision.image_size
    differences = []
    if config.model.image_token != RELEASED_IMAGE_TOKEN:
        differences.append(
            f"vLLM cannot place images: its placeholder is {RELEASED_IMAGE_TOKEN}, this model's is "
            f"{config.model.image_token}"
        )
    if stage.tile_tags != "1d":
        differences.append("trained without tile tags; vLLM writes 1-D tags")
    if stage.tile_tags == "1d" and stage.max_num_tiles > 9:
        digits = len(str(stage.max_num_tiles))
        differences.append(
            f"trained with tags of {digits} digits, as `<tile_{1:0{digits}}>`; vLLM writes "
            "`<tile_1>`"
        )
    if not stage.use_thumbnail and stage.max_num_tiles > 1:
        differences.append(
            "trained without thumbnails; vLLM writes no tag for the last tile then and refuses the "
            "image, VLMEvalKit adds a thumbnail"
        )
    if stage.image_boundary != "block":
        differences.append(VLLM_BOUNDARIES[stage.image_boundary])
    if isinstance(config.model.vision, SideBySideConfig):
        differences.append(
            "VLMEvalKit cannot feed it: it normalises pixels with ImageNet's mean and deviation, "
            "and each of this model's encoders normalises them by itself"
        )
    elif config.model.vision.pixel_statistics != (IMAGENET_MEAN, IMAGENET_STD):
        differences.append(
            "VLMEvalKit cannot feed it: it normalises pixels with ImageNet's mean and deviation, "
            "this model's encoder was trained with others"
        )
    if image_size != RELEASED_IMAGE_SIZE:
        differences.append(
            f"VLMEvalKit cannot feed it: it cuts tiles of {RELEASED_IMAGE_SIZE} pixels, this model "
            f"reads tiles of {image_size}"
        )
    if stage.max_num_tiles != RELEASED_MAX_NUM_TILES:
        differences.append(
            f"VLMEvalKit cuts an image into at most {RELEASED_MAX_NUM_TILES} tiles, this model was "
            f"trained with {stage.max_num_tiles}"
        )
    return differences
