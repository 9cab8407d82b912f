"""`chat`: a question, with images and earlier turns, to an answer.

Images enter as tiles (`load_image`), text as messages (prompts.py). Every image is the
mark `<image>` in a question; it becomes `<Image>`, per tile a tag and `num_image_token`
placeholders, `</Image>`.
"""

import copy

import torch
from transformers import GenerationConfig

from .prompts import IMAGE_END, IMAGE_MARK, IMAGE_START, PromptEncoder

# Length of an answer when the caller sets none: transformers would cut it after 20 tokens.
DEFAULT_MAX_NEW_TOKENS = 1024

# What the released `chat` has as defaults. They stand for the strings that this model knows.
_RELEASED_START, _RELEASED_END = "<|vision_start|>", "<|vision_end|>"
_RELEASED_PLACEHOLDER = "<|vision_pad|>"

# Default of `system_message`: the one that the model was trained with.
_AS_TRAINED = object()


class ChatMixin:
    """The chat methods of `NVLM_D_Model`."""

    _prompt_encoder = None
    _prompt_encoder_class = PromptEncoder

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
            IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN: names and defaults of the released
                files. The defaults mean the strings that this model was trained with; others are
                refused.
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
        ends = {*encoder.stop_ids, *own_ends} - {None}
        settings.eos_token_id = sorted(ends)
        if settings.pad_token_id is None:
            settings.pad_token_id = encoder.turn_end_id
        self.img_context_token_id = encoder.image_id
        ids = self.generate(
            pixel_values=pixel_values,
            input_ids=torch.tensor([prompt]),
            visual_features=visual_features,
            generation_config=settings,
            **self._beside_of(prompt),
            **others,
        )
        answer_ids = ids[0][len(prompt) :] if self._repeats_prompt else ids[0]
        return tokenizer.decode(answer_ids, skip_special_tokens=True).strip()

    def _beside_of(self, prompt):
        """What `generate` is told of a prompt besides its ids."""
        return {}

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
            self._prompt_encoder = self._prompt_encoder_class(
                tokenizer, self.config, self.num_image_token
            )
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
