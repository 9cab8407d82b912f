"""`README.md` of an export."""

from __future__ import annotations

import textwrap

from nvlm.config.compose import to_yaml
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.timm import TimmConfig
from nvlm.config.schema import RunConfig
from nvlm.convert.export.config import VLLM_BOUNDARIES, serving_differences
from nvlm.convert.hf.values import language_architecture
from nvlm.data.text.chat_format import CHATML, ChatFormat
from nvlm.sizes.visual import VisualLayout

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [{design}, multimodal]
---

# {name}

{introduction}

| component | parameters |
|---|---|
{parameters}

{weights}

## Use

With transformers ({tried}):

```python
import torch
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.{dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
settings = dict(max_new_tokens=128, do_sample=False)

pixel_values = model.load_image("image.png")
print(model.chat(tokenizer, pixel_values, "<image>\\nWhat is shown?", settings))

# Several images: tiles one after another, and how many belong to each.
images = [model.load_image(name) for name in ("first.png", "second.png")]
question = "<image>\\n<image>\\nWhat differs?"
num_patches = [len(image) for image in images]
print(model.chat(tokenizer, torch.cat(images), question, settings, num_patches_list=num_patches))

# Text only, and a second turn.
answer, history = model.chat(tokenizer, None, "Hello!", settings, return_history=True)
print(model.chat(tokenizer, None, "And again?", settings, history=history))
```

Before transformers 4.56, write `torch_dtype` for `dtype`. `chat` takes the released NVLM-D-72B's
arguments. With `device_map="auto"` (needs accelerate) the model spreads over all devices.

{vlmevalkit}

{vllm}

## Prompt

{prompt}

## Limits

{lengths}
- Single images, several images and text; no video.
- Its answers can be wrong or harmful like those of the language model it was made from. This card
  reports no evaluation: whoever publishes the model should add what was measured.
{differences}
## Provenance and licence

{provenance}

The weights stand under the licences of the models that they started from and of the data they were
trained on. Neither is recorded here: name both, and add `license:` to the head of this file, before
you publish it. (InternViT-6B and 300M are MIT; Qwen2-72B has Qwen's own licence, smaller Qwen2 are
Apache-2.0; the released NVLM-D-72B is CC BY-NC 4.0. Check the ones you used.) The Python files in
this folder are Apache-2.0.

## Training configuration

```yaml
{config}```
"""

_BOUNDARIES = {
    "block": (
        "Each image stands on a line of its own: `chat` and the template break the line before a "
        "mark that does not begin one, and leave one newline after it; the block from `<Image>` to "
        "`</Image>`, that newline and the text after it are tokenised each by themselves."
    ),
    "merged": "All text between two placeholders or control tokens is tokenised as one string.",
    "separate": (
        "All text between two placeholders or control tokens is tokenised as one string, but an "
        "image's first tag apart from `<Image>`."
    ),
}
_DESIGNS = {"decoder_only": "NVLM-D", "cross_attention": "NVLM-X", "hybrid": "NVLM-H"}
_READ = {
    "decoder_only": "a decoder-only language model reads them between text tile tags.",
    "cross_attention": (
        "a language model reads them by gated cross-attention in every {interval}th layer, guided "
        "by tile tags in its text."
    ),
    "hybrid": (
        "a language model has those of the thumbnail among its own and reads the others, with "
        "their tile tags, by gated cross-attention in every {interval}th layer."
    ),
}
_IMAGES = {
    "decoder_only": "for each tile {tag}{and_}{placeholders}",
    "cross_attention": "for each tile {tag}and no placeholder",
    "hybrid": "of the thumbnail, or the only tile, {tag}{and_}{placeholders}",
}
_VLMEVALKIT = "With VLMEvalKit: class `NVLM`, `model_path` this folder."
_VLLM = """\
With vLLM, which has its own code for this architecture:

```bash
vllm serve . --trust-remote-code
```
"""


def model_card(
    config: RunConfig,
    chat: ChatFormat,
    progress: dict | None,
    num_parameters: dict[str, int],
    dtype: str,
) -> str:
    """Markdown for the export of a checkpoint.

    Args:
        chat: how conversations are written.
        progress: what the training run noted beside its weights; None for converted weights.
        num_parameters: component -> parameters, zero heads counted.
        dtype: `float32` or `bfloat16`.
    """
    rows = {**num_parameters, "total": sum(num_parameters.values())}
    differences, is_d = serving_differences(config), config.model.fusion == "decoder_only"
    vlmevalkit, differences = _how_to(_VLMEVALKIT, "VLMEvalKit cannot feed it: ", differences)
    versions = f"{VLLM_BOUNDARIES[config.stage.image_boundary]}."
    how_to = f"{_VLLM}\n{_paragraph(versions[0].upper() + versions[1:])}"
    vllm, differences = _how_to(how_to, "vLLM cannot load it: ", differences)
    return _TEMPLATE.format(
        name=config.run.name,
        design=_DESIGNS[config.model.fusion].lower(),
        introduction=_introduction(config, progress),
        parameters="\n".join(f"| {name} | {number:,} |" for name, number in rows.items()),
        weights=_weights(config, dtype),
        dtype=dtype,
        tried="tried with 4.49 to 5.23" if is_d else "tried with 5.23",
        vlmevalkit=vlmevalkit,
        vllm=vllm,
        prompt=_prompt(config, chat),
        lengths=_lengths(config),
        differences=_differences(differences),
        provenance=_provenance(config, progress),
        config=to_yaml(config),
    )


def _introduction(config: RunConfig, progress: dict | None) -> str:
    visual, cross = VisualLayout.from_config(config), config.model.cross_attention
    interval = cross and cross.layer_interval
    kind = config.model.connector.kind
    connector = "a two-layer projector" if kind == "mlp" else f"a connector of kind `{kind}`"
    return _paragraph(
        f"A multimodal language model of {_DESIGNS[config.model.fusion]}'s design "
        "(https://arxiv.org/abs/2409.11402): "
        f"{_encoder(config)} reads tiles of {visual.image_size} x {visual.image_size} pixels cut "
        f"dynamically from each image, {connector} turns each tile into "
        f"{visual.num_tokens_per_tile} tokens, and "
        + _READ[config.model.fusion].format(interval=interval),
        "Its weights were converted, not trained, with the configuration below."
        if progress is None
        else f"Trained with Megatron-core: stage `{config.stage.name}`, step {progress['step']}.",
    )


def _encoder(config: RunConfig) -> str:
    """In words; of several the one beside the other."""
    parts = config.model.vision.parts.values()
    return " beside ".join(
        f"timm's `{part.name}`" if isinstance(part, TimmConfig) else "InternViT" for part in parts
    )


def _weights(config: RunConfig, dtype: str) -> str:
    padded = [
        vision
        for vision in config.model.vision.parts.values()
        if isinstance(vision, InternViTConfig)
        and vision.num_stored_attention_heads > vision.num_attention_heads
    ]
    if not padded:
        return f"Weights are {dtype}."
    vision = padded[0]
    num_zero_heads = vision.num_stored_attention_heads - vision.num_attention_heads
    return _paragraph(
        f"Weights are {dtype}. The vision encoder stores {num_zero_heads} heads of zeros behind",
        f"its {vision.num_attention_heads} real ones; they are counted.",
    )


def _prompt(config: RunConfig, chat: ChatFormat) -> str:
    stage, visual = config.stage, VisualLayout.from_config(config)
    if stage.system_message is None:
        system = "without a system turn of its own"
    else:
        system = f"with the system message `{stage.system_message}` where a conversation has none"
    placeholders = f"{visual.num_tokens_per_tile} times `{config.model.image_token}`"
    tag = "" if stage.tile_tags == "none" else "a tag (`<tile_1>`, ..., `<tile_global_thumbnail>`) "
    image = _IMAGES[config.model.fusion].format(
        tag=tag, and_="and " if tag else "", placeholders=placeholders
    )
    return _paragraph(
        f"{_turns(chat)}, {system}. An image in a question is the mark",
        f"`<image>`; it becomes `<Image>`, {image}, `</Image>`.",
        "The tokenizer's chat template writes the same, with the mark as it stands.",
        _BOUNDARIES[stage.image_boundary],
    )


def _turns(chat: ChatFormat) -> str:
    if chat == CHATML:
        return "ChatML with a newline after each `<|im_end|>`"
    opening, begin = chat.around("assistant")[0], f" begins with `{chat.begin}` and"
    parts = [*chat.user, opening, chat.assistant[1]]
    question, asked, lead, end = (part.replace("\n", "\\n") for part in parts)
    return (
        f"A conversation{begin if chat.begin else ''} is written as `{question}QUESTION{asked}"
        f"{lead}{chat.answer_start}ANSWER{end}` (format `{chat.name}`)"
    )


def _lengths(config: RunConfig) -> str:
    stage, visual = config.stage, VisualLayout.from_config(config)
    has_thumbnail = visual.max_tiles_per_image > visual.max_num_tiles
    thumbnail = " and a thumbnail" if has_thumbnail else ""
    return _bullet(
        f"Trained on images of at most {stage.max_num_tiles} tiles{thumbnail}, and on sequences of "
        f"{stage.sequence_length} tokens; the language model's positions end at "
        f"{config.model.language.max_position_embeddings}."
    )


def _differences(differences: list[str]) -> str:
    if not differences:
        return ""
    bullets = "\n".join(_bullet(f"{text}.") for text in differences)
    return f"\nWhat other programs assume and is not so of this model:\n\n{bullets}\n"


def _provenance(config: RunConfig, progress: dict | None) -> str:
    model, parts = config.model, config.model.vision.parts.values()
    language = language_architecture(model.language).removesuffix("ForCausalLM")
    return _paragraph(
        f"{'An ' if model.vision.kind == 'internvit' else ''}{_encoder(config)} of "
        f"{' and '.join(str(part.num_computed_layers) for part in parts)} layers, a {language} of "
        f"{model.language.num_layers}, tokenizer `{model.tokenizer}`.",
        _feature_layers(config),
        "" if progress is None else f"Training started from `{config.checkpoint.load}`.",
    )


def _feature_layers(config: RunConfig) -> str:
    parts = config.model.vision.parts.values()
    number = sum(part.feature_size // part.hidden_size for part in parts)
    if number == len(parts):
        return ""
    return f"The projector reads hidden states of {number} of the encoder's layers, side by side."


def _how_to(text: str, obstacle: str, differences: list[str]) -> tuple[str, list[str]]:
    """(`text`, or why it is not possible; the other differences)"""
    reasons = [one.removeprefix(obstacle) for one in differences if one.startswith(obstacle)]
    others = [one for one in differences if not one.startswith(obstacle)]
    return (_paragraph(obstacle + "; ".join(reasons) + ".") if reasons else text), others


def _paragraph(*sentences: str) -> str:
    text = " ".join(sentences).strip()
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _bullet(text: str) -> str:
    return textwrap.fill(
        f"- {text}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
