"""Run alone: an export's answers by transformers' `generate`, with nothing of this repository.

Usage: generate_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import alone
import torch


def main() -> None:
    tokenizer, model, cases, results_file = alone.opened_export()
    results: dict = {"prompts": [], "answers": [], "next_logits": []}
    for question, history, images in cases["questions"]:
        tiles = [model.load_image(file) for file in images]
        pixels = torch.cat(tiles) if tiles else None
        num_tiles = [len(tile) for tile in tiles]
        ids = model.build_prompt_ids(tokenizer, question, history, num_tiles)
        results["prompts"].append(ids)
        prompt = torch.tensor([ids])
        with torch.no_grad():
            said = model.generate(
                pixel_values=pixels,
                input_ids=prompt,
                max_new_tokens=cases["max_new_tokens"],
                do_sample=False,
            )
            results["answers"].append(said[0].tolist())
            if len(results["next_logits"]) < cases["num_logits"]:
                found = model(pixel_values=pixels, input_ids=prompt).logits[0, -1]
                results["next_logits"].append(found)
    torch.save(results, results_file)


if __name__ == "__main__":
    main()
