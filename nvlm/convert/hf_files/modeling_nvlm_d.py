"""NVLM-D for transformers: tiles, prompts, `chat`, `generate` and `forward`.

Images enter as tiles (`load_image`), text as messages in ChatML. Every image is the mark `<image>`
in a question; it becomes `<Image>`, per tile a tag and `num_image_token` placeholders, `</Image>`.

Shape suffixes: n tiles, s tokens per tile, r rows, k columns, c channels.
"""

import copy
import json

import torch
from tokenizers import Tokenizer
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

__all__ = ["NVLM_D_Model", "build_transform", "choose_grid", "dynamic_preprocess", "load_image"]

IMAGE_MARK = "<image>"
THUMBNAIL_TAG = "<tile_global_thumbnail>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

_LANGUAGE_MODELS = {"Qwen2ForCausalLM": Qwen2ForCausalLM, "LlamaForCausalLM": LlamaForCausalLM}


def tile_tags(num_tiles, kind, use_thumbnail):
    """The text before each tile's placeholders, in order of the tiles."""
    if kind == "none":
        return [""] * num_tiles
    if num_tiles > 1 and not use_thumbnail:
        return [f"<tile_{number}>" for number in range(1, num_tiles + 1)]
    return [*(f"<tile_{number}>" for number in range(1, num_tiles)), THUMBNAIL_TAG]


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
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

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
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None and visual_features is None:
            return embeddings
        if visual_features is None:
            if pixel_values.dim() != 4:
                raise ValueError(
                    "pixel_values must be [tiles, 3, image_size, image_size], found "
                    f"{list(pixel_values.shape)}; pass token ids as input_ids=..."
                )
            device, dtype = self.vision_model.device, self.vision_model.dtype
            visual_features = self.extract_feature(pixel_values.to(device, dtype))
        if self.img_context_token_id is None:
            raise ValueError("config.json has no img_context_token_id: set model's, or use chat()")
        is_image = input_ids == self.img_context_token_id
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
        """Logits, and the loss if `labels` are given (not shifted; -100 is ignored)."""
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
        **kwargs,
    ):
        """New token ids [batch, new tokens]; the prompt is not repeated.

        Keyword arguments override fields of `generation_config`, by default the folder's.
        """
        if input_ids is None:
            raise ValueError("generate needs input_ids=...; text-only prompts have no pixel_values")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        settings = copy.deepcopy(generation_config or self.generation_config)
        others = settings.update(**kwargs)
        return self.language_model.generate(
            inputs_embeds=self._embed(input_ids, pixel_values, visual_features),
            attention_mask=attention_mask,
            generation_config=settings,
            **others,
        )

    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config=None,
        history=None,
        return_history=False,
        num_patches_list=None,
        verbose=False,
        visual_features=None,
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
            verbose: print the exchange.
            visual_features: `extract_feature(pixel_values)`, if already computed.
        """
        images = visual_features if visual_features is not None else pixel_values
        num_tiles = 0 if images is None else images.shape[0]
        if num_patches_list is None:
            num_patches_list = [num_tiles] if num_tiles else []
        if history is None and num_tiles and IMAGE_MARK not in question:
            question = f"{IMAGE_MARK}\n{question}"
        if sum(num_patches_list) != num_tiles:
            raise ValueError(f"num_patches_list {num_patches_list} for {num_tiles} tiles")
        history = list(history or [])

        self.img_context_token_id = tokenizer.convert_tokens_to_ids(self.config.image_token)
        prompt = self.build_prompt_ids(tokenizer, question, history, num_patches_list)
        input_ids = torch.tensor([prompt], device=self.language_model.device)
        if generation_config is None:
            generation_config = {"max_new_tokens": 1024, "do_sample": False}
        if isinstance(generation_config, GenerationConfig):
            settings = {"generation_config": generation_config}
        else:
            settings = dict(generation_config)
        settings["eos_token_id"] = tokenizer.convert_tokens_to_ids(TURN_END)
        if tokenizer.pad_token_id is not None:
            settings["pad_token_id"] = tokenizer.pad_token_id
        new_ids = self.generate(
            pixel_values=pixel_values,
            input_ids=input_ids,
            visual_features=visual_features,
            **settings,
        )
        answer = tokenizer.decode(new_ids[0], skip_special_tokens=True).strip()
        if verbose:
            print(f"{question}\n{answer}")
        return (answer, [*history, (question, answer)]) if return_history else answer

    # ---------------------------------------------------------------------------------- prompts

    def build_prompt_ids(self, tokenizer, question, history=(), num_patches_list=()):
        """Token ids of the conversation up to where the answer begins.

        Control tokens are inserted as ids. The text between two of them is tokenised as one string
        in which no special token is recognised, so no text can turn into a control token; an
        earlier answer begins a new string, as it did when it was generated.

        Raises:
            ValueError: the `<image>` marks do not match `num_patches_list`.
        """
        config = self.config
        remaining = list(num_patches_list)
        num_marks = sum(text.count(IMAGE_MARK) for text, _ in [*history, (question, "")])
        if num_marks != len(remaining):
            raise ValueError(
                f"{num_marks} {IMAGE_MARK} marks for {len(remaining)} images "
                f"(num_patches_list {remaining})"
            )
        writer = _PromptWriter(tokenizer)

        def write_turn(role, content):
            writer.control(TURN_START)
            writer.text(f"{role}\n")
            if role == "assistant":
                writer.boundary()
            first, *others = content.split(IMAGE_MARK) if role == "user" else [content]
            writer.text(first)
            for text in others:
                write_image(remaining.pop(0))
                writer.text(text)
            writer.control(TURN_END)
            writer.text("\n")

        def write_image(num_tiles):
            writer.text("<Image>")
            for tag in tile_tags(num_tiles, config.tile_tags, config.use_thumbnail):
                if config.image_boundary == "separate":
                    writer.boundary()
                writer.text(tag)
                writer.control(config.image_token, repeat=self.num_image_token)
            writer.text("</Image>")

        if self.system_message is not None:
            write_turn("system", self.system_message)
        for earlier_question, earlier_answer in history:
            write_turn("user", earlier_question)
            write_turn("assistant", earlier_answer)
        write_turn("user", question)
        writer.control(TURN_START)
        writer.text("assistant\n")
        return writer.finish()


class _PromptWriter:
    """Collects text and control tokens; text between two control tokens is tokenised together."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.plain = _without_added_tokens(tokenizer)
        self.ids = []
        self.pending = ""

    def text(self, text):
        self.pending += text

    def boundary(self):
        """Tokenise what is pending, apart from what follows."""
        if self.pending:
            self.ids += self.plain.encode(self.pending, add_special_tokens=False).ids
        self.pending = ""

    def control(self, token, repeat=1):
        self.boundary()
        self.ids += [self.tokenizer.convert_tokens_to_ids(token)] * repeat

    def finish(self):
        self.boundary()
        return self.ids


def _without_added_tokens(tokenizer):
    """A copy of the tokenizer's core to which `<|im_start|>` and the like are ordinary text."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    plain = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps({**definition, **plain}))
