"""Makes the tiny pretrained models in assets/tiny, on a CPU, from the demo's training material.

    python -m assets.tiny.make [--out assets/tiny] [--only tokenizer|vision|language] [--seed 0]

Run it in the repository's folder, with the extra `demo` installed. assets/tiny/README.md says how
the committed files were made, how long it took and what accuracies were printed. The demo itself
(`scripts/quickstart`) never runs it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

from assets.tiny.make.language import pretrain_language
from assets.tiny.make.tokenizer import train_tokenizer
from assets.tiny.make.vision import pretrain_vision
from nvlm.config import load_config

REPOSITORY = Path(__file__).resolve().parents[3]
PARTS = ("tokenizer", "vision", "language")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets" / "tiny")
    parser.add_argument("--only", choices=PARTS, help="make this part, leave the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vision-steps", type=int, default=1000)
    # The committed weights are those of step 400 of a 600-step schedule.
    parser.add_argument("--language-steps", type=int, default=600)
    parser.add_argument("--language-last-step", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    parts = [arguments.only] if arguments.only else PARTS
    model = load_config(REPOSITORY / "configs/run/tiny/sft.yaml").model
    language_folder = arguments.out / "qwen2"
    if "tokenizer" in parts:
        train_tokenizer(language_folder, model.language.vocab_size, arguments.seed)
    if "vision" in parts:
        folder = arguments.out / "internvit"
        pretrain_vision(model.vision, folder, arguments.seed, arguments.vision_steps)
    if "language" in parts:
        tokenizer = AutoTokenizer.from_pretrained(language_folder)
        pretrain_language(
            model.language,
            tokenizer,
            language_folder,
            arguments.seed,
            arguments.language_steps,
            arguments.language_last_step,
        )


if __name__ == "__main__":
    main()
