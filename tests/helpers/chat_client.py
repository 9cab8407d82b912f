"""Run alone: what an export's `chat` feeds and answers, with transformers alone.

Usage: chat_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import sys

import alone
import torch


def main() -> None:
    alone.hide_project()
    from transformers import AutoModel, AutoTokenizer

    folder, cases_file, results_file = sys.argv[1:]
    cases = torch.load(cases_file)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tiles = model.load_image(cases["image"])
    stops = model.generation_config.eos_token_id
    results: dict = {"prompts": [], "answers": []}
    results["stops"] = stops if isinstance(stops, list) else [stops]
    for question, history in cases["conversations"]:
        has_image = "<image>" in question
        num_tiles = [len(tiles)] if has_image else []
        prompt = model.build_prompt_ids(tokenizer, question, history, num_tiles)
        results["prompts"].append(prompt)
        settings = {"max_new_tokens": cases["new_tokens"], "do_sample": False}
        pixels = tiles if has_image else None
        answer = model.chat(tokenizer, pixels, question, settings, history=history)
        results["answers"].append(answer)
    torch.save(results, results_file)


main()
