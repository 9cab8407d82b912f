"""NVLM-D for transformers: images, `generate` and `forward`; `chat` is in chat.py.

Shape suffixes: n tiles, s tokens per tile, c channels.
"""

import copy
from types import SimpleNamespace

import torch
import transformers
from transformers import GenerationMixin, PreTrainedModel

# transformers 4 brings along only what this file itself imports: it names every other one.
from .chat import ChatMixin
from .configuration_nvlm_d import NVLM_D_Config
from .connector_mlp import Connector
from .image_tiling import build_transform, choose_grid, dynamic_preprocess, load_image
from .modeling_intern_vit import InternVisionModel
from .prompts import PromptEncoder

__all__ = [
    "NVLM_D_ForCausalLM",
    "NVLM_D_Model",
    "PromptEncoder",
    "build_transform",
    "choose_grid",
    "dynamic_preprocess",
    "load_image",
]


class NVLM_D_Model(ChatMixin, PreTrainedModel, GenerationMixin):
    config_class = NVLM_D_Config
    main_input_name = "pixel_values"
    base_model_prefix = "language_model"
    _no_split_modules = [  # noqa: RUF012
        "InternVisionEmbeddings",
        "InternVisionEncoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "LlamaDecoderLayer",
        "Qwen2MoeDecoderLayer",
        "Qwen3MoeDecoderLayer",
    ]
    # Qwen2-MoE's expert for all tokens, which is 0 wide here and adds nothing.
    _keys_to_ignore_on_load_missing = [r"\.mlp\.shared_expert"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    # What `generate` gives begins with the prompt.
    _repeats_prompt = False

    def __init__(self, config, use_flash_attn=None):
        """`use_flash_attn` is accepted for callers of the released files and has no effect.

        Attention goes through torch's `scaled_dot_product_attention`, which picks fast kernels.
        """
        super().__init__(config)
        if (config.select_layer, config.ps_version) != (-1, "v2"):
            raise ValueError(
                "only select_layer -1 and ps_version 'v2' are implemented, found "
                f"{config.select_layer}, {config.ps_version!r}"
            )
        vision, language = config.vision_config, config.llm_config
        self.vision_model = InternVisionModel(vision)
        # Checked by the configuration: one of its LANGUAGE_CONFIGS.
        self.language_model = getattr(transformers, language.architectures[0])(language)
        sizes = SimpleNamespace(
            num_patches=vision.num_patches,
            channels=vision.feature_size,
            hidden_size=language.hidden_size,
        )
        # Of any kind; the name is the released model's.
        self.mlp1 = Connector(SimpleNamespace(**config.connector_settings()), sizes)
        self.num_image_token = config.num_image_token
        self.system_message = config.system_message
        self.img_context_token_id = getattr(config, "img_context_token_id", None)
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
            statistics=config.vision_config.pixel_statistics,
        )

    def extract_feature(self, pixel_values):
        """[n, 3, image_size, image_size] -> embeddings [n, num_image_token, language width]."""
        return self.mlp1(self.vision_model.patches(pixel_values))

    def _embed(self, input_ids, pixel_values, visual_features):
        """Embeddings of `input_ids`, those of the tiles in place of the placeholders."""
        if input_ids is None:
            raise ValueError("input_ids=... are missing; text-only prompts have no pixel_values")
        embedding = self.get_input_embeddings()
        embeddings = embedding(input_ids.to(_input_device(embedding)))
        if pixel_values is None and visual_features is None:
            return embeddings
        if visual_features is None:
            visual_features = self.extract_feature(self._as_input(pixel_values))
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

    def _as_input(self, pixel_values):
        """For the vision model: where it is, of its type."""
        if pixel_values.dim() != 4:
            raise ValueError(
                "pixel_values must be [tiles, 3, image_size, image_size], found "
                f"{list(pixel_values.shape)}"
            )
        return pixel_values.to(_input_device(self.vision_model), self.vision_model.dtype)

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
        """New token ids [batch, new tokens]; without the prompt (`NVLM_D_ForCausalLM`: with it).

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
            attention_mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        if self._repeats_prompt:
            others["input_ids"] = input_ids.to(embeddings.device)
        return self.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(embeddings.device),
            generation_config=settings,
            **others,
        )


class NVLM_D_ForCausalLM(NVLM_D_Model):
    """The same model with the manners of transformers' language models: for `AutoModelForCausalLM`.

    `generate` gives the prompt and the new tokens, [batch, prompt + new], and stopping criteria,
    logits processors and `max_length` are about both. Programs that take any language model, such
    as lm-evaluation-harness and `pipeline("text-generation")`, count on that. `chat` is the same.
    """

    main_input_name = "input_ids"
    _repeats_prompt = True


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
