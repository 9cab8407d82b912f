"""Run alone: an export in the hands of other programs, with nothing of this repository.

Usage: serving_client.py EXPORT CASES.pt RESULTS.pt

Three parts: the calls of VLMEvalKit's class NVLM, what vLLM does with configuration and prompts
before its model runs, and exports of other variants opened by both of transformers' classes.
"""

from __future__ import annotations

import sys
from functools import reduce

import alone
import numpy as np
import torch
import vllm_expectations
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

TILE_SIZE = 448
MOST_TILES = 6


def main() -> None:
    alone.hide_project()
    export, cases_file, results_file = sys.argv[1:]
    cases = torch.load(cases_file)
    results = {
        "vlmevalkit": as_vlmevalkit(export, cases["questions"]),
        "vllm": as_vllm(export, cases["conversations"]),
        "variants": {
            name: open_variant(folder, cases) for name, folder in cases["variants"].items()
        },
        "imported": sorted(
            {module.partition(".")[0] for module in sys.modules} & {"megatron", "nvlm"}
        ),
    }
    torch.save(results, results_file)


# ------------------------------------------------------------------------------------ VLMEvalKit


def as_vlmevalkit(folder: str, questions: list[tuple[str, str]]) -> dict:
    """The calls that vlmeval/vlm/nvlm.py makes (open-compass/VLMEvalKit, commit 401916c).

    One dict of settings serves every question, so `chat` must not change it. Pixel values go to the
    accelerator before `chat`; without one they stay.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, use_fast=False)
    settings = {"max_new_tokens": 8, "do_sample": False}
    model = AutoModel.from_pretrained(
        folder,
        torch_dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        use_flash_attn=False,
        trust_remote_code=True,
        device_map="auto",
    ).eval()
    accelerator = torch.accelerator.current_accelerator()
    prompts: list = []
    generate = model.generate

    def recording_generate(*args, **kwargs):
        prompts.append(kwargs["input_ids"][0].tolist())
        return generate(*args, **kwargs)

    model.generate = recording_generate
    results: dict = {"pixel_values": [], "answers": [], "again": []}
    for image_file, question in questions:
        pixel_values = cut_and_normalize(image_file).to(torch.bfloat16)
        pixel_values = pixel_values if accelerator is None else pixel_values.to(accelerator)
        results["pixel_values"].append(pixel_values.float())
        results["answers"].append(model.chat(tokenizer, pixel_values, question, settings).strip())
        # The same by the export's own loader, in words of its own documentation.
        own = model.load_image(image_file)
        results["again"].append(model.chat(tokenizer, own, f"<image>\n{question}", settings))
    results["prompts"] = prompts
    results["settings"] = settings
    results["dtype"] = str(model.dtype)
    return results


def cut_and_normalize(image_file: str) -> torch.Tensor:
    """At most six tiles of 448 x 448 and, of more than one, a thumbnail."""
    image = Image.open(image_file).convert("RGB")
    grids = [
        (columns, rows)
        for columns in range(1, MOST_TILES + 1)
        for rows in range(1, MOST_TILES + 1)
        if columns * rows <= MOST_TILES
    ]

    def distance(grid):
        return abs(image.width / image.height - grid[0] / grid[1])

    closest = min(map(distance, grids))
    ties = sorted((grid for grid in grids if distance(grid) == closest), key=lambda g: g[0] * g[1])
    fits = [g for g in ties if image.width * image.height > 0.5 * TILE_SIZE**2 * g[0] * g[1]]
    columns, rows = fits[-1] if fits else ties[0]

    resized = image.resize((columns * TILE_SIZE, rows * TILE_SIZE))
    tiles = []
    for number in range(columns * rows):
        left, upper = number % columns * TILE_SIZE, number // columns * TILE_SIZE
        tiles.append(resized.crop((left, upper, left + TILE_SIZE, upper + TILE_SIZE)))
    if len(tiles) > 1:
        tiles.append(image.resize((TILE_SIZE, TILE_SIZE)))
    # torchvision's Resize (to the size that tiles have already), ToTensor and Normalize.
    pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (pixels.float() / 255 - mean) / std


# ------------------------------------------------------------------------------------------ vLLM


def as_vllm(folder: str, conversations: dict) -> dict:
    """Configuration attributes by path, and token ids of chats, as vLLM comes by them."""
    config = AutoConfig.from_pretrained(
        folder, trust_remote_code=True, has_no_defaults_at_init=True
    )
    config.update({"text_config": config.llm_config})
    attributes = {
        path: reduce(getattr, path.split("."), config) for path in vllm_expectations.ATTRIBUTES
    }
    text_config = config.get_text_config()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    num_image_token = (config.force_image_size // config.vision_config.patch_size) ** 2
    num_image_token = int(num_image_token * config.downsample_ratio**2)
    prompts = {}
    for name, (messages, num_tiles) in conversations.items():
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = [
            vllm_expectations.image_text(number, num_image_token, config.use_thumbnail)
            for number in num_tiles
        ]
        prompts[name] = vllm_expectations.place_images(tokenizer, prompt, images)
    return {
        "attributes": attributes,
        "text_config": {
            "class": type(text_config).__name__,
            "is": text_config is config.llm_config,
        },
        "placeholder": tokenizer.get_vocab()[vllm_expectations.PLACEHOLDER],
        "prompts": prompts,
        "eos_token": tokenizer.eos_token,
    }


# -------------------------------------------------------------------------------------- variants


def open_variant(folder: str, cases: dict) -> dict:
    results: dict = {}
    for opened_by in (AutoModel, AutoModelForCausalLM):
        model, loading = opened_by.from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True
        )
        model.eval()
        results[opened_by.__name__] = {
            "class": type(model.language_model).__name__,
            "problems": {key: sorted(map(str, found)) for key, found in loading.items() if found},
            "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
            "logits": model(pixel_values=cases["pixels"], input_ids=cases["input_ids"]).logits,
        }
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    settings = {"max_new_tokens": 4, "do_sample": False}
    results["answer"] = model.chat(tokenizer, cases["pixels"], "What is it?", settings)
    return results


if __name__ == "__main__":
    with torch.no_grad():
        main()
