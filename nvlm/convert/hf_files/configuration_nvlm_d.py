"""Configuration of NVLM-D: InternViT, a projector and a decoder-only language model."""

import transformers
from transformers import PretrainedConfig

from .chat_format import CHATML
from .configuration_intern_vit import InternVisionConfig

# By name: releases of transformers before 4.51 have no Qwen3.
LANGUAGE_CONFIGS = {
    "Qwen2ForCausalLM": "Qwen2Config",
    "Qwen3ForCausalLM": "Qwen3Config",
    "LlamaForCausalLM": "LlamaConfig",
    "Qwen2MoeForCausalLM": "Qwen2MoeConfig",
    "Qwen3MoeForCausalLM": "Qwen3MoeConfig",
}


class NVLM_D_Config(PretrainedConfig):
    """Key names follow the released NVLM-D-72B; the keys below are additions.

    connector: settings with which connector_mlp.py makes the language model's tokens of a tile's
        patches, and `num_tokens`, how many; None: pixel shuffle by `downsample_ratio` and an MLP
        of the two keys below, as released.
    projector_hidden_size: width between the projector's linears; None is the language model's
        `intermediate_size`, as released.
    projector_layer_norm_eps: epsilon of the projector's LayerNorm; 1e-5 is what the released
        files (and other servers) use.
    tile_tags: `1d` (`<tile_1>` ... `<tile_global_thumbnail>`) or `none`.
    image_boundary: how text around images is tokenised. `block`: each image on a line of its own,
        `<Image>...</Image>`, the newline and the text after it each by themselves; `merged`: all
        that stands between placeholders as one text; `separate`: like `merged`, but `<Image>` and
        the first tag one by one.
    system_message: text of the system turn that `chat` begins with; None for no system turn.
    image_token: the special token whose positions image embeddings overwrite.
    chat_format: how conversations are written; see chat_format.py. `template` is its name.
    """

    model_type = "NVLM_D"
    has_no_defaults_at_init = False
    # The language model's class depends on its architecture; the base class stands for all.
    sub_configs = {  # noqa: RUF012
        "vision_config": InternVisionConfig,
        "llm_config": PretrainedConfig,
    }  # type: ignore

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        select_layer=-1,
        force_image_size=None,
        downsample_ratio=0.5,
        ps_version="v2",
        template="chatml",
        dynamic_image_size=True,
        use_thumbnail=True,
        min_dynamic_patch=1,
        max_dynamic_patch=6,
        connector=None,
        projector_hidden_size=None,
        projector_layer_norm_eps=1e-5,
        tile_tags="1d",
        image_boundary="merged",
        system_message="Answer the questions.",
        image_token="<|vision_pad|>",
        chat_format=None,
        **kwargs,
    ):
        if not isinstance(vision_config, InternVisionConfig):
            vision_config = InternVisionConfig(**(vision_config or {}))
        if not isinstance(llm_config, PretrainedConfig):
            llm_config = _language_config(llm_config or {})
        self.vision_config = vision_config
        self.llm_config = llm_config
        self.select_layer = select_layer
        self.force_image_size = force_image_size or vision_config.image_size
        self.downsample_ratio = downsample_ratio
        self.ps_version = ps_version
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.connector = connector
        self.projector_hidden_size = projector_hidden_size or llm_config.intermediate_size
        self.projector_layer_norm_eps = projector_layer_norm_eps
        self.tile_tags = tile_tags
        self.image_boundary = image_boundary
        self.system_message = system_message
        self.image_token = image_token
        self.chat_format = chat_format or CHATML
        kwargs["tie_word_embeddings"] = llm_config.tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def num_image_token(self):
        """Tokens of a tile in the language model."""
        if self.connector is not None:
            return self.connector["num_tokens"]
        return self.vision_config.num_patches // self.connector_settings()["pixel_shuffle"] ** 2

    def connector_settings(self):
        if self.connector is not None:
            return self.connector
        if self.downsample_ratio not in (1.0, 0.5, 0.25):
            raise ValueError(
                f"only downsample_ratio 1.0, 0.5 and 0.25 are implemented, found "
                f"{self.downsample_ratio}"
            )
        return {
            "pixel_shuffle": round(1 / self.downsample_ratio),
            "ffn_hidden_size": self.projector_hidden_size,
            "norm_epsilon": self.projector_layer_norm_eps,
        }

    def get_text_config(self, *args, **kwargs):
        return self.llm_config


def _language_config(values):
    architecture = (values.get("architectures") or ["Qwen2ForCausalLM"])[0]
    if architecture not in LANGUAGE_CONFIGS:
        raise ValueError(
            f"llm_config.architectures {architecture!r} is not one of {', '.join(LANGUAGE_CONFIGS)}"
        )
    # The released file says model_type "llama" beside architectures ["Qwen2ForCausalLM"].
    values = {key: value for key, value in values.items() if key != "model_type"}
    config_class = getattr(transformers, LANGUAGE_CONFIGS[architecture], None)
    if config_class is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no {architecture}; it needs a newer one"
        )
    return config_class(**{**values, "architectures": [architecture]})
