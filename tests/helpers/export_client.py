"""Run alone: use an export as anyone would, with transformers and nothing of this repository.

Usage: export_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings

import alone
import torch

# Warnings that the export's own files cause are errors; what transformers logs is collected.
warnings.filterwarnings("error", module=r"transformers_modules\.")


class _Collector(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    alone.hide_project()
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
    )

    folder, cases_file, results_file = sys.argv[1:]
    cases = torch.load(cases_file)
    results: dict = {}
    collector = _Collector()
    logging.getLogger("transformers").addHandler(collector)
    results["logged"] = collector.messages
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    # The keyword that evaluation suites pass to the released model.
    causal = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, use_flash_attn=False
    ).eval()
    results["classes"] = [type(model).__name__, type(causal).__name__]
    results["generation_config"] = model.generation_config.to_dict()

    module = sys.modules[type(model).__module__]
    size = cases["image_size"]
    results["pixel_values"] = [
        module.load_image(file, size, max_num, use_thumbnail)
        for file, max_num, use_thumbnail in cases["images"]
    ]
    results["own_settings"] = model.load_image(cases["images"][0][0])

    results["prompts"] = []
    for question, history, num_tiles, settings in cases["prompts"]:
        for key, value in settings.items():
            holder = model if key == "system_message" else model.config
            setattr(holder, {"max_num_tiles": "max_dynamic_patch"}.get(key, key), value)
        ids = model.build_prompt_ids(tokenizer, question, history, num_tiles)
        results["prompts"].append(ids)

    pixel_values = torch.cat(results["pixel_values"])
    with torch.no_grad():
        for name, one in {"logits": model, "causal_logits": causal}.items():
            output = one(pixel_values=pixel_values, input_ids=cases["input_ids"])
            results[name] = output.logits
        labels = cases["labels"]
        output = model(pixel_values=pixel_values, input_ids=cases["input_ids"], labels=labels)
        results["loss"] = output.loss

    with torch.no_grad(), tempfile.TemporaryDirectory() as offload:
        results["placed_logits"] = {
            name: placed(pixel_values=pixel_values, input_ids=cases["input_ids"]).logits
            for name, placed in _placed_models(AutoModel, folder, offload).items()
        }

    projector_norm = model.mlp1[0]
    trained_with, projector_norm.eps = projector_norm.eps, 1e-5
    with torch.no_grad():
        output = model(pixel_values=pixel_values, input_ids=cases["input_ids"])
    results["logits at epsilon 1e-5"], projector_norm.eps = output.logits, trained_with

    settings = {"max_new_tokens": 6, "do_sample": False}
    question = "<image>\n<image>\nWhat differs?"
    num_patches = [len(values) for values in results["pixel_values"]]
    _, history = model.chat(tokenizer, pixel_values, question, settings, None, True, num_patches)
    _, history = model.chat(
        tokenizer,
        pixel_values,
        "And now?",
        settings,
        history=history,
        return_history=True,
        num_patches_list=num_patches,
    )
    results["history"] = history
    results["text_only"] = model.chat(tokenizer, None, "Hello!", settings)
    one_image = results["pixel_values"][0]
    features = model.extract_feature(one_image)
    # Every argument of the released `chat`, by position.
    released = (None, False, None, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", False)
    results["one_image"] = {
        "by name": model.chat(tokenizer, one_image, "What?", settings),
        "by position": model.chat(tokenizer, one_image, "What?", settings, *released, None),
        "empty history": model.chat(tokenizer, one_image, "What?", settings, history=[]),
        "with mark": model.chat(tokenizer, one_image, "<image>\nWhat?", settings),
        "features": model.chat(tokenizer, None, "What?", settings, visual_features=features),
        "generation config": model.chat(
            tokenizer, one_image, "What?", GenerationConfig(max_new_tokens=6, do_sample=False)
        ),
    }
    results["settings"] = settings

    prompts = {}
    generate = model.generate
    model.generate = lambda **kwargs: prompts.update(last=kwargs["input_ids"]) or generate(**kwargs)
    for name, call in {
        "no system": lambda: model.chat_without_sys_prompt(
            tokenizer, one_image, "What?", settings, None, False, None
        ),
        "bare": lambda: model.chat_without_chat_prompt(tokenizer, one_image, "What?", settings),
    }.items():
        assert isinstance(call(), str)
        results["prompt, " + name] = prompts["last"][0].tolist()
    del model.generate

    ids = torch.tensor([model.build_prompt_ids(tokenizer, "Hello!")])
    results["generated"] = {
        "by name": model.generate(input_ids=ids, max_new_tokens=6),
        "ids first": model.generate(ids, max_new_tokens=6),
        "return_dict": model.generate(input_ids=ids, max_new_tokens=6, return_dict=True),
        "generation config": model.generate(
            input_ids=ids, generation_config=GenerationConfig(max_new_tokens=6)
        ),
    }
    # The manners of a language model of transformers: the prompt comes first, lengths count it, and
    # a criterion sees it.
    seen: list = []
    longest = ids.shape[1] + 6
    results["generated by a language model"] = {
        "max_length": causal.generate(input_ids=ids, max_length=longest),
        "ids first": causal.generate(ids, max_new_tokens=6),
        "criterion": causal.generate(
            input_ids=ids,
            max_length=longest,
            stopping_criteria=[lambda ids, scores, **_: _note(seen, ids)],
        ),
    }
    results["seen by the criterion"] = seen
    results["chat of a language model"] = [
        opened.chat(tokenizer, one_image, "What?", settings) for opened in (model, causal)
    ]
    prompt = torch.tensor(
        [model.build_prompt_ids(tokenizer, "<image>\nWhat?", (), [len(one_image)])]
    )
    results["with an image"] = [
        opened.generate(pixel_values=one_image, input_ids=prompt, max_new_tokens=6)
        for opened in (model, causal)
    ]
    results["prompt with an image"] = prompt
    with torch.no_grad():
        results["text logits"] = {
            "by name": model(input_ids=ids).logits,
            "ids first": model(ids).logits,
            "return_dict": model(input_ids=ids, return_dict=True).logits,
            "tuple": model(input_ids=ids, return_dict=False)[0],
            "language model": model.language_model(input_ids=ids).logits,
        }
    # Nothing sets the length of the answer: it ends by itself or after the default.
    model.language_model.generate, lengths = _record_length(model.language_model.generate)
    model.chat(tokenizer, None, "Hello!", {"do_sample": False, "eos_token_id": list(range(1024))})
    results["default max_new_tokens"] = lengths
    del model.language_model.generate

    refused = {}
    for name, call in {
        "marks": lambda: model.chat(tokenizer, None, "<image>\nWhere?", settings),
        "tiles": lambda: model.chat(
            tokenizer, pixel_values, "<image>\n?", settings, None, False, [1]
        ),
        "no ids": lambda: model.generate(pixel_values=pixel_values),
        "start token": lambda: model.chat(tokenizer, None, "?", IMG_START_TOKEN="<img>"),
        "placeholder": lambda: model.chat(tokenizer, None, "?", IMG_CONTEXT_TOKEN="<pad>"),
        "features": lambda: model.chat(
            tokenizer, None, "?", settings, visual_features=features[..., :8]
        ),
    }.items():
        try:
            call()
        except ValueError as error:
            refused[name] = str(error)
    results["refused"] = refused
    logging.getLogger("transformers.generation").warning("the collector works")
    results["imported"] = sorted(
        {module.partition(".")[0] for module in sys.modules} & {"megatron", "nvlm"}
    )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    results["config"] = json.loads(config.to_json_string())
    torch.save(results, results_file)


def _placed_models(auto_model, folder: str, offload: str):
    """The model where `device_map` puts all of it, or a part, elsewhere than in memory."""
    parts = ["vision_model", "mlp1", "language_model.lm_head", "language_model.model"]
    maps = {
        "one device": {"": "cpu"},
        "chosen by transformers": "auto",
        "language model on disk": dict(zip(parts, ["cpu", "cpu", "cpu", "disk"])),
        "vision model on disk": dict(zip(parts, ["disk", "disk", "cpu", "cpu"])),
    }
    return {
        name: auto_model.from_pretrained(
            folder, trust_remote_code=True, device_map=device_map, offload_folder=offload
        ).eval()
        for name, device_map in maps.items()
    }


def _note(seen: list, ids) -> torch.Tensor:
    """A stopping criterion that never stops."""
    seen.append(ids[0].tolist())
    return torch.zeros(len(ids), dtype=torch.bool)


def _record_length(generate):
    lengths: list = []

    def recording(**kwargs):
        lengths.append(kwargs["generation_config"].max_new_tokens)
        return generate(**kwargs)

    return recording, lengths


if __name__ == "__main__":
    main()
