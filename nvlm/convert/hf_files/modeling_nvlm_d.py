"""NVLM-D for transformers: images, `chat`, `generate` and `forward`.

Images enter as tiles (`load_image`), text as messages in ChatML (prompts.py). Every image is the
mark `<image>` in a question; it becomes `<Image>`, per tile a tag and `num_image_token`
placeholders, `</Image>`.

Shape suffixes: n tiles, s tokens per tile, r rows, k columns, c channels.
"""

import copy

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from .configuration_nvlm_d import NVLM_D_Config
from .image_tiling import build_transform, choose_grid, dynamic_preprocess, load_image
from .modeling_intern_vit import InternVisionModel
from .prompts import IMAGE_END, IMAGE_MARK, IMAGE_START, PromptEncoder

__all__ = ["NVLM_D_Model", "build_transform", "choose_grid", "dynamic_preprocess", "load_image"]

_LANGUAGE_MODELS = {"Qwen2ForCausalLM": Qwen2ForCausalLM, "LlamaForCausalLM": LlamaForCausalLM}

# Length of an answer when the caller sets none: transformers would cut it after 20 tokens.
DEFAULT_MAX_NEW_TOKENS = 1024

# What the released `chat` has as defaults. They stand for the strings that this model knows.
_RELEASED_START, _RELEASED_END = "<|vision_start|>", "<|vision_end|>"
_RELEASED_PLACEHOLDER = "<|vision_pad|>"

# Default of `system_message`: the one that the model was trained with.
_AS_TRAINED = object()


def pixel_shuffle(patches_nrkc):
    """Merge 2 x 2 neighbouring patches: [n, r, k, c] -> [n, r/2 * k/2, 4c], row-major (version 2).

    Channels: upper left, upper right, lower left, lower right.
    """
    n, rows, columns, channels = patches_nrkc.shape
    blocks = patches_nrkc.view(n, rows // 2, 2, columns // 2, 2, channels)
    return blocks.transpose(2, 3).reshape(n, rows * columns // 4, 4 * channels)


class NVLM_D_Model(PreTrainedModel, GenerationMixin):
    config_class = NVLM_D_Config
    main_input_name = "pixel_values"
    base_model_prefix = "language_model"
    _no_split_modules = [  # noqa: RUF012
        "InternVisionEmbeddings",
        "InternVisionEncoderLayer",
        "Qwen2DecoderLayer",
        "LlamaDecoderLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config, use_flash_attn=None):
        """`use_flash_attn` is accepted for callers of the released files and has no effect.

        Attention goes through torch's `scaled_dot_product_attention`, which picks fast kernels.
        """
        super().__init__(config)
        if (config.select_layer, config.ps_version, config.downsample_ratio) != (-1, "v2", 0.5):
            raise ValueError(
                "only select_layer -1, ps_version 'v2' and downsample_ratio 0.5 are implemented, "
                f"found {config.select_layer}, {config.ps_version!r}, {config.downsample_ratio}"
            )
        vision, language = config.vision_config, config.llm_config
        self.vision_model = InternVisionModel(vision)
        self.language_model = _LANGUAGE_MODELS[language.architectures[0]](language)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * vision.hidden_size, eps=config.projector_layer_norm_eps),
            nn.Linear(4 * vision.hidden_size, config.projector_hidden_size, bias=False),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, language.hidden_size, bias=False),
        )
        self.num_image_token = (config.force_image_size // vision.patch_size) ** 2 // 4
        self.system_message = config.system_message
        self.img_context_token_id = getattr(config, "img_context_token_id", None)
        self._prompt_encoder = None
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.language_model.set_output_embeddings(value)

    # ---------------------------------------------------------------------------------- images

    def load_image(self, image):
        """Pixel values of an image file or `PIL.Image`, tiled as this model was trained."""
        config = self.config
        return load_image(
            image,
            input_size=config.force_image_size,
            max_num=config.max_dynamic_patch if config.dynamic_image_size else 1,
            use_thumbnail=config.use_thumbnail,
            min_num=config.min_dynamic_patch,
        )

    def extract_feature(self, pixel_values):
        """[n, 3, image_size, image_size] -> embeddings [n, num_image_token, language width]."""
        patches_nsc = self.vision_model(pixel_values=pixel_values).last_hidden_state[:, 1:]
        side = int(patches_nsc.shape[1] ** 0.5)
        return self.mlp1(pixel_shuffle(patches_nsc.unflatten(1, (side, side))))

    def _embed(self, input_ids, pixel_values, visual_features):
        """Embeddings of `input_ids`, those of the tiles in place of the placeholders."""
        if input_ids is None:
            raise ValueError("input_ids=... are missing; text-only prompts have no pixel_values")
        embedding = self.get_input_embeddings()
        embeddings = embedding(input_ids.to(_input_device(embedding)))
        if pixel_values is None and visual_features is None:
            return embeddings
        if visual_features is None:
            if pixel_values.dim() != 4:
                raise ValueError(
                    "pixel_values must be [tiles, 3, image_size, image_size], found "
                    f"{list(pixel_values.shape)}"
                )
            device, dtype = _input_device(self.vision_model), self.vision_model.dtype
            visual_features = self.extract_feature(pixel_values.to(device, dtype))
        elif visual_features.shape[1:] != (self.num_image_token, embeddings.shape[-1]):
            raise ValueError(
                "visual_features must be what extract_feature returns, [tiles, "
                f"{self.num_image_token}, {embeddings.shape[-1]}], found "
                f"{list(visual_features.shape)}; features from before the projector go through "
                "model.mlp1 first"
            )
        if self.img_context_token_id is None:
            raise ValueError("config.json has no img_context_token_id: set model's, or use chat()")
        is_image = (input_ids == self.img_context_token_id).to(embeddings.device)
        num_placeholders, num_features = int(is_image.sum()), visual_features.shape[:2].numel()
        if num_placeholders != num_features:
            raise ValueError(
                f"{num_placeholders} image placeholders in input_ids for {num_features} embeddings "
                f"({visual_features.shape[0]} tiles x {visual_features.shape[1]})"
            )
        visual_features = visual_features.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(is_image.unsqueeze(-1), visual_features)

    # ---------------------------------------------------------------------------------- running

    def forward(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        visual_features=None,
        **kwargs,
    ):
        """Logits, and the loss if `labels` are given (not shifted; -100 is ignored).

        Token ids may come first, as for a language model, when there are no images.
        """
        pixel_values, input_ids = _token_ids_may_come_first(pixel_values, input_ids)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, pixel_values, visual_features)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        visual_features=None,
        generation_config=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        """New token ids [batch, new tokens]; the prompt is not repeated.

        Token ids may come first, as for a language model, when there are no images. Keyword
        arguments override fields of `generation_config`, by default the folder's. `return_dict` is
        accepted for callers of the released files and has no effect; transformers' name for it is
        `return_dict_in_generate`.
        """
        pixel_values, input_ids = _token_ids_may_come_first(pixel_values, input_ids)
        if generation_config is None:
            generation_config = self.generation_config
        settings = copy.deepcopy(generation_config)
        if output_hidden_states is not None:
            kwargs["output_hidden_states"] = output_hidden_states
        others = settings.update(**kwargs)
        embeddings = self._embed(input_ids, pixel_values, visual_features)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(embeddings.device),
            generation_config=settings,
            **others,
        )

    # ------------------------------------------------------------------------------------- chat

    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config=None,
        history=None,
        return_history=False,
        num_patches_list=None,
        IMG_START_TOKEN=_RELEASED_START,
        IMG_END_TOKEN=_RELEASED_END,
        IMG_CONTEXT_TOKEN=_RELEASED_PLACEHOLDER,
        verbose=False,
        visual_features=None,
        system_message=_AS_TRAINED,
    ):
        """Answer `question`, greedily unless `generation_config` says otherwise.

        Args:
            tokenizer: the tokenizer of this folder.
            pixel_values: tiles of all images of the conversation in order, or None without images.
            question: text with one `<image>` mark per image; a first question without marks gets
                one at its start.
            generation_config: a `GenerationConfig`, or a dict of its fields.
            history: earlier (question, answer) pairs.
            return_history: return (answer, history) instead of the answer.
            num_patches_list: tiles per image; None: all tiles are one image's.
            IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN: as in the released files, where the
                first two change nothing. Left at their defaults they mean the strings that this
                model was trained with; others are refused.
            verbose: print the exchange.
            visual_features: `extract_feature(pixel_values)`, if already computed.
            system_message: another than the one trained with; None for no system turn.

        Raises:
            ValueError: tiles, `<image>` marks and `num_patches_list` do not fit together, or a
                token string is not the model's.
        """
        self._check_token_strings(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        if system_message is _AS_TRAINED:
            system_message = self.system_message
        num_patches_list = _tiles_per_image(num_patches_list, pixel_values, visual_features)
        history = [tuple(turn) for turn in history or []]
        if num_patches_list and not history and IMAGE_MARK not in question:
            question = f"{IMAGE_MARK}\n{question}"
        prompt = self._encoder(tokenizer).conversation(
            question, history, num_patches_list, system_message
        )
        answer = self._answer(tokenizer, prompt, pixel_values, visual_features, generation_config)
        if verbose:
            print(f"{question}\n{answer}")
        return (answer, [*history, (question, answer)]) if return_history else answer

    def chat_without_sys_prompt(self, *args, **kwargs):
        """`chat` without a system turn."""
        return self.chat(*args, **kwargs, system_message=None)

    def chat_without_chat_prompt(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config=None,
        num_patches_list=None,
        IMG_START_TOKEN=_RELEASED_START,
        IMG_END_TOKEN=_RELEASED_END,
        IMG_CONTEXT_TOKEN=_RELEASED_PLACEHOLDER,
        verbose=False,
        visual_features=None,
    ):
        """Continue `question` as it stands, with its images but without turns; see `chat`."""
        self._check_token_strings(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        num_patches_list = _tiles_per_image(num_patches_list, pixel_values, visual_features)
        if num_patches_list and IMAGE_MARK not in question:
            question = f"{IMAGE_MARK}\n{question}"
        prompt = self._encoder(tokenizer).bare(question, num_patches_list)
        answer = self._answer(tokenizer, prompt, pixel_values, visual_features, generation_config)
        if verbose:
            print(f"{question}\n{answer}")
        return answer

    def build_prompt_ids(self, tokenizer, question, history=(), num_patches_list=()):
        """Token ids of the conversation up to where the answer begins, as `chat` feeds them.

        Raises:
            ValueError: the `<image>` marks do not match `num_patches_list`.
        """
        return self._encoder(tokenizer).conversation(
            question, list(history), list(num_patches_list), self.system_message
        )

    def _answer(self, tokenizer, prompt, pixel_values, visual_features, generation_config):
        encoder = self._encoder(tokenizer)
        settings, others = self._settings(generation_config)
        own_ends = settings.eos_token_id
        own_ends = own_ends if isinstance(own_ends, list) else [own_ends]
        ends = {encoder.turn_end_id, *own_ends} - {None}
        settings.eos_token_id = sorted(ends)
        if settings.pad_token_id is None:
            settings.pad_token_id = encoder.turn_end_id
        self.img_context_token_id = encoder.image_id
        new_ids = self.generate(
            pixel_values=pixel_values,
            input_ids=torch.tensor([prompt]),
            visual_features=visual_features,
            generation_config=settings,
            **others,
        )
        return tokenizer.decode(new_ids[0], skip_special_tokens=True).strip()

    def _settings(self, generation_config):
        """(a `GenerationConfig` of its own, what of a dict is not one of its fields)."""
        if isinstance(generation_config, GenerationConfig):
            settings, others = copy.deepcopy(generation_config), {}
        else:
            settings = copy.deepcopy(self.generation_config)
            others = settings.update(**(generation_config or {}))
        unset = GenerationConfig()
        if settings.max_new_tokens is None and settings.max_length == unset.max_length:
            settings.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        return settings, others

    def _encoder(self, tokenizer):
        """The prompt encoder of `tokenizer`, kept: a large tokenizer takes a second to copy."""
        if self._prompt_encoder is None or self._prompt_encoder.tokenizer is not tokenizer:
            self._prompt_encoder = PromptEncoder(tokenizer, self.config, self.num_image_token)
        return self._prompt_encoder

    def _check_token_strings(self, start, end, placeholder):
        wanted = {
            "IMG_START_TOKEN": (start, IMAGE_START, _RELEASED_START),
            "IMG_END_TOKEN": (end, IMAGE_END, _RELEASED_END),
            "IMG_CONTEXT_TOKEN": (placeholder, self.config.image_token, _RELEASED_PLACEHOLDER),
        }
        for name, (given, own, released) in wanted.items():
            if given not in (own, released, None):
                raise ValueError(f"{name} {given!r}: this model was trained with {own!r}")


def _tiles_per_image(num_patches_list, pixel_values, visual_features):
    images = visual_features if visual_features is not None else pixel_values
    num_tiles = 0 if images is None else images.shape[0]
    if num_patches_list is None:
        return [num_tiles] if num_tiles else []
    if sum(num_patches_list) != num_tiles:
        raise ValueError(f"num_patches_list {list(num_patches_list)} for {num_tiles} tiles")
    return list(num_patches_list)


def _token_ids_may_come_first(pixel_values, input_ids):
    """(pixel_values, input_ids), with a first argument of token ids in its place."""
    is_text = pixel_values is not None and not torch.is_floating_point(pixel_values)
    if is_text and pixel_values.dim() == 2 and input_ids is None:
        return None, pixel_values
    return pixel_values, input_ids


def _input_device(module):
    """Where inputs of `module` go; offloaded weights are `meta`, and fetch their inputs."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
