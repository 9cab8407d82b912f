"""Run in a client's environment: an export opened by transformers alone, any release since 4.49.

Usage: chat_and_generate.py EXPORT QUESTIONS.json OUT.json MAX_NEW_TOKENS
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    export, questions, out, max_new_tokens = sys.argv[1:]
    asked = json.loads(Path(questions).read_text())
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    found = {}
    for opened_by in (AutoModel, AutoModelForCausalLM):
        # Stored in float32, which is what releases before 5 load without being asked to.
        model = opened_by.from_pretrained(export, trust_remote_code=True, torch_dtype=torch.float32)
        found[opened_by.__name__] = answers(model.eval(), tokenizer, asked, int(max_new_tokens))
    imported = sorted({name.partition(".")[0] for name in sys.modules} & {"megatron", "nvlm"})
    assert not imported, f"transformers alone is meant to run here, but found {imported}"
    Path(out).write_text(json.dumps(found))


def answers(model, tokenizer, asked: dict, max_new_tokens: int) -> dict:
    found: dict = {"chat": {}, "generate": {}}
    # As every language model of transformers, so does what AutoModelForCausalLM opens.
    repeats_prompt = type(model).__name__ == "NVLM_D_ForCausalLM"
    calls: list = []
    generate = model.generate

    def recording_generate(*args, **kwargs):
        ids = generate(*args, **kwargs)
        prompt = kwargs["input_ids"][0].tolist()
        calls.append(
            (prompt, ids[0, len(prompt) :].tolist() if repeats_prompt else ids[0].tolist())
        )
        return ids

    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for name, question in asked.items():
        texts = [turn["content"] for turn in question["messages"]]
        model.config.max_dynamic_patch = question["max_num_tiles"]
        tiles = [model.load_image(file) for file in question["images"]]
        pixel_values = torch.cat(tiles) if tiles else None
        num_tiles = [len(tiles_of_image) for tiles_of_image in tiles]
        model.generate = recording_generate
        text = model.chat(
            tokenizer,
            pixel_values,
            texts[-1],
            {"max_new_tokens": max_new_tokens, "do_sample": False},
            history=list(zip(texts[:-1:2], texts[1:-1:2])),
            num_patches_list=num_tiles,
        )
        prompt_ids, new_ids = calls.pop()
        assert not calls, "chat is expected to call generate once"
        found["chat"][name] = {"prompt_ids": prompt_ids, "answer_ids": new_ids, "text": text}
        model.generate = generate
        ids = generate(
            pixel_values=pixel_values,
            input_ids=torch.tensor([prompt_ids]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )[0].tolist()
        if repeats_prompt:
            assert ids[: len(prompt_ids)] == prompt_ids
        found["generate"][name] = ids[len(prompt_ids) :] if repeats_prompt else ids
    return found


if __name__ == "__main__":
    with torch.no_grad():
        main()
