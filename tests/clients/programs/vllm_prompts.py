"""Run in vLLM's environment: its chat endpoint's prompts, and its model class on this CPU.

Usage: vllm_prompts.py EXPORT PROMPTS.json OUT.json

vLLM's renderer, processor, model class and loader are its own. What its release has for GPUs alone
is done by torch: matrix products, attention over one whole sequence without a cache, and the native
forms of its operators. In the same process transformers opens the export, for its `chat` and its
logits of the same tokens and pixels.
"""

import base64
import json
import sys
from pathlib import Path

import torch
import vllm.platforms
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()

from vllm.config import (  # noqa: E402
    DeviceConfig,
    ModelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed import (  # noqa: E402
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.custom_op import CustomOp  # noqa: E402
from vllm.model_executor.layers import utils  # noqa: E402
from vllm.model_executor.layers.attention import Attention  # noqa: E402
from vllm.renderers import ChatParams, renderer_from_config  # noqa: E402


def main() -> None:
    export, asked, out = sys.argv[1:]
    prompts = json.loads(Path(asked).read_text())
    settings = VllmConfig(
        model_config=ModelConfig(
            model=export,
            tokenizer=export,
            trust_remote_code=True,
            dtype="float32",
            max_model_len=4096,
            limit_mm_per_prompt={"image": 4},
            enforce_eager=True,
        ),
        device_config=DeviceConfig("cpu"),
    )
    with set_current_vllm_config(settings), torch.no_grad():
        rendered = {name: render(settings, turns) for name, turns in prompts.items()}
        model, weights = open_model(settings, Path(export), Path(out))
        found = {
            name: prompt if "refused" in prompt else answer(model, prompt)
            for name, prompt in rendered.items()
        }
        compare_with_transformers(export, prompts, rendered, found)
    for prompt in found.values():
        prompt.pop("logits", None)
    Path(out).write_text(json.dumps({"weights": weights, "prompts": found}))


def render(settings, turns: list) -> dict:
    """Token ids and pixels as the chat endpoint comes by them, or why it refuses."""

    def content(turn: dict) -> list | str:
        images = [base64.b64encode(Path(file).read_bytes()).decode() for file in turn["images"]]
        urls = [{"url": f"data:image/png;base64,{image}"} for image in images]
        parts = [{"type": "image_url", "image_url": url} for url in urls]
        return [*parts, {"type": "text", "text": turn["content"]}] if parts else turn["content"]

    messages = [{"role": turn["role"], "content": content(turn)} for turn in turns]
    params = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    try:
        renderer = renderer_from_config(settings)
        _, (prompt,) = renderer.render_chat([messages], params, skip_mm_cache=True)
    except (AssertionError, RuntimeError, ValueError) as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    items = prompt["mm_kwargs"].get_data() if "mm_kwargs" in prompt else {}
    return {"ids": prompt["prompt_token_ids"], "items": items}


def open_model(settings, export: Path, out: Path):
    """vLLM's model with the export's weights, and which of these or of its own were left over."""
    CustomOp.dispatch_forward = lambda self, *args, **kwargs: self.forward_native
    utils.cpu_unquantized_gemm = utils.default_unquantized_gemm
    Attention.forward = attend
    init_distributed_environment(1, 0, f"file://{out}.rendezvous", 0, backend="gloo")
    initialize_model_parallel(1, 1)
    from vllm.model_executor.models.nvlm_d import NVLM_D_Model

    model = NVLM_D_Model(vllm_config=settings).eval()
    tensors = {}
    for file in sorted(export.glob("*.safetensors")):
        tensors |= load_file(file)
    # It raises for a name that it does not know.
    loaded = model.load_weights(tensors.items())
    missing = sorted({name for name, _ in model.named_parameters()} - loaded)
    return model, {"tensors": len(tensors), "missing": missing}


def attend(self, query, key, value, output_shape=None, output_dtype=None):
    """Causal attention of one sequence, in the place of kernels that need a cache."""
    heads = ((query, self.num_heads), (key, self.num_kv_heads), (value, self.num_kv_heads))
    q, k, v = (x.view(-1, number, self.head_size).transpose(0, 1)[None] for x, number in heads)
    attended = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=self.impl.scale, enable_gqa=True
    )
    return attended[0].transpose(0, 1).flatten(1)


def answer(model, prompt: dict) -> dict:
    ids, items = torch.tensor(prompt["ids"]), prompt["items"]
    images = list(model.embed_multimodal(**items)) if items else []
    is_image = ids == model.config.img_context_token_id
    embeddings = model.embed_input_ids(ids, images or None, is_multimodal=is_image)
    hidden = model(input_ids=None, positions=torch.arange(len(ids)), inputs_embeds=embeddings)
    logits = model.compute_logits(hidden).float()
    return {"ids": prompt["ids"], "logits": logits, "loss": prompt_loss(logits, ids, is_image)}


def prompt_loss(logits, ids, is_image) -> float:
    """Mean over the prompt's tokens but placeholders."""
    losses = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return losses[~is_image[1:]].mean().item()


def compare_with_transformers(export: str, prompts: dict, rendered: dict, found: dict) -> None:
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model = AutoModel.from_pretrained(export, trust_remote_code=True, dtype=torch.float32).eval()
    for name, prompt in found.items():
        if "refused" in prompt:
            continue
        ids, items = torch.tensor([prompt["ids"]]), rendered[name]["items"]
        pixels = items["pixel_values_flat"] if items else None
        logits = model(pixel_values=pixels, input_ids=ids).logits[0]
        error = (prompt["logits"][:, : logits.shape[1]] - logits).abs().max().item()
        tiles = items["image_num_patches"].tolist() if items else []
        prompt |= {"error": error, "chat": chat_ids(model, tokenizer, prompts[name], tiles)}


def chat_ids(model, tokenizer, turns: list, tiles: list) -> list:
    """What `chat` of the export's own files feeds; a system turn is an argument there."""
    texts = []
    for turn in turns:
        missing = len(turn["images"]) - turn["content"].count("<image>")
        texts.append("<image>\n" * (missing if turn["images"] else 0) + turn["content"])
    system = model.system_message
    if turns[0]["role"] == "system":
        system = texts.pop(0)
    history = list(zip(texts[:-1:2], texts[1::2]))
    return model._encoder(tokenizer).conversation(texts[-1], history, tiles, system)


if __name__ == "__main__":
    main()
