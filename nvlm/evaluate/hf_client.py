"""Asks an exported model held-out questions with transformers alone: no Megatron in this process.

    python -m nvlm.evaluate.hf_client EXPORT QUESTIONS OUT

loads the export folder as any user would (`trust_remote_code`), answers each question of the
folder written by `nvlm.evaluate.questions.write_questions` greedily through the export's own
`load_image` and `chat`, and writes one JSON line per question: sample_id, source, answer,
prompt_token_ids and answer_token_ids (the end-of-turn token included, if it came).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nvlm.files import json_line, read_json_lines


def answer_all(export: Path, questions: Path, out: Path, max_new_tokens: int) -> None:
    """Answer every question of folder `questions` with the model in folder `export`.

    `out` is complete once it exists: lines go to `OUT.part` first.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model: Any = AutoModel.from_pretrained(export, trust_remote_code=True, dtype=torch.float32)
    model.eval()
    calls = _record_generate(model)
    own_system_message = model.system_message

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for sample in read_json_lines(questions / "samples.jsonl"):
            turns = sample["messages"]
            model.system_message = own_system_message
            if turns[0]["role"] == "system":
                model.system_message = turns[0]["content"]
                turns = turns[1:]
            texts = [turn["content"] for turn in turns]
            model.config.dynamic_image_size = sample["max_num_tiles"] > 1
            model.config.max_dynamic_patch = sample["max_num_tiles"]
            tiles = [model.load_image(questions / name) for name in sample["images"]]
            answer = model.chat(
                tokenizer,
                torch.cat(tiles) if tiles else None,
                texts[-1],
                {"max_new_tokens": max_new_tokens, "do_sample": False},
                history=list(zip(texts[:-1:2], texts[1:-1:2])),
                num_patches_list=[len(image_tiles) for image_tiles in tiles],
            )
            prompt_ids, answer_ids = calls.pop()
            assert not calls, "chat is expected to call generate once"
            record = {
                "sample_id": sample["sample_id"],
                "source": sample["source"],
                "answer": answer,
                "prompt_token_ids": prompt_ids,
                "answer_token_ids": answer_ids,
            }
            file.write(json_line(record))
            file.flush()
    part.replace(out)


def _record_generate(model: Any) -> list[tuple[list[int], list[int]]]:
    """Let `model.generate` also note its prompt and its new tokens; `chat` returns only text."""
    calls: list[tuple[list[int], list[int]]] = []
    generate = model.generate

    def recording_generate(*args, **kwargs):
        new_ids = generate(*args, **kwargs)
        calls.append((kwargs["input_ids"][0].tolist(), new_ids[0].tolist()))
        return new_ids

    model.generate = recording_generate
    return calls


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="the exported Hugging Face folder")
    parser.add_argument("questions", type=Path, help="folder with samples.jsonl and images")
    parser.add_argument("out", type=Path, help="JSON lines to write")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args(arguments)
    answer_all(options.export, options.questions, options.out, options.max_new_tokens)
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "megatron")
    assert not loaded, f"this process must not load Megatron, found {loaded[:3]}"


if __name__ == "__main__":
    main()
