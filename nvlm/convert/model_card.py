"""`README.md` of an export."""

from __future__ import annotations

from nvlm.config.compose import to_yaml
from nvlm.config.schema import RunConfig
from nvlm.convert.export_config import serving_differences

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [nvlm-d, multimodal]
---

# {name}

An NVLM-D-style multimodal language model: InternViT reads tiles of {image_size} x {image_size}
pixels cut dynamically from each image, a two-layer projector turns each tile into {num_tokens}
tokens, and a decoder-only language model reads them between text tile tags. Trained with
Megatron-core, {progress}.

| component | parameters |
|---|---|
{parameters}

## Use

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

The prompt code tokenises exactly as in training: ChatML with a newline after each `<|im_end|>`.
{differences}
## Training configuration

```yaml
{config}```
"""


def model_card(
    config: RunConfig, progress: dict | None, num_parameters: dict[str, int], dtype: str
) -> str:
    """Markdown for the export of a checkpoint.

    Args:
        progress: what the training run noted beside its weights; None for converted weights.
        num_parameters: component -> parameters, zero heads counted.
        dtype: `float32` or `bfloat16`.
    """
    differences = serving_differences(config)
    if differences:
        lines = "\n".join(f"- {difference}" for difference in differences)
        note = f"\nOther servers may assume otherwise:\n\n{lines}\n"
    else:
        note = ""
    rows = {**num_parameters, "total": sum(num_parameters.values())}
    return _TEMPLATE.format(
        name=config.run.name,
        image_size=config.model.vision.image_size,
        num_tokens=config.model.vision.num_tokens_per_tile,
        progress=f"stage `{config.stage.name}`, step {progress['step']}"
        if progress
        else "as imported, before any training of its projector",
        parameters="\n".join(f"| {name} | {number:,} |" for name, number in rows.items()),
        dtype=dtype,
        differences=note,
        config=to_yaml(config),
    )
