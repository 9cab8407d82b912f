"""Run alone: greedy answers of a checkpoint by Megatron-core.

Usage: megatron_answers.py CHECKPOINT MAX_NEW_TOKENS QUESTIONS.json OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nvlm.data.images.image import decode_image
from nvlm.generate.engine import Engine


def main() -> None:
    checkpoint, max_new_tokens, questions, out = sys.argv[1:]
    answers = {}
    with Engine(checkpoint) as engine:
        engine.load()
        for name, question in json.loads(Path(questions).read_text()).items():
            images = [decode_image(Path(file).read_bytes()) for file in question["images"]]
            prompt = engine.prepare(
                question["messages"], images, int(max_new_tokens), question["max_num_tiles"]
            )
            answer = engine.answer(prompt, int(max_new_tokens))
            answers[name] = {
                "prompt_ids": answer.prompt_ids,
                "answer_ids": answer.answer_ids,
                "text": answer.text,
            }
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
