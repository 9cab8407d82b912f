"""Run alone: use an export as anyone would, with transformers and nothing of this repository.

Usage: export_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import json
import sys

import torch

# On machines whose torch has no CUDA while torchvision's wheel expects it, transformers can only
# import torchvision after these two schemas exist. Elsewhere they do already.
if torch.version.cuda is None:
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def main() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder, cases_file, results_file = sys.argv[1:]
    cases = torch.load(cases_file)
    results: dict = {}
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
            setattr(holder, key, value)
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
    results["one_image"] = model.chat(tokenizer, results["pixel_values"][0], "What?", settings)
    features = model.extract_feature(results["pixel_values"][0])
    results["one_image_by_features"] = model.chat(
        tokenizer, None, "<image>\nWhat?", settings, visual_features=features
    )
    ids = model.build_prompt_ids(tokenizer, "Hello!")
    results["generated"] = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=6)

    refused = {}
    for name, call in {
        "marks": lambda: model.chat(tokenizer, None, "<image>\nWhere?", settings),
        "tiles": lambda: model.chat(
            tokenizer, pixel_values, "<image>\n?", settings, None, False, [1]
        ),
        "no ids": lambda: model.generate(pixel_values=pixel_values),
    }.items():
        try:
            call()
        except ValueError as error:
            refused[name] = str(error)
    results["refused"] = refused
    results["imported"] = sorted(
        {module.partition(".")[0] for module in sys.modules} & {"megatron", "nvlm"}
    )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    results["config"] = json.loads(config.to_json_string())
    torch.save(results, results_file)


if __name__ == "__main__":
    main()
