"""Run alone: what an export's `chat` feeds and answers, with transformers alone.

Usage: chat_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import alone
import torch


def main() -> None:
    tokenizer, model, cases, results_file = alone.opened_export()
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


if __name__ == "__main__":
    main()
