"""The tokenizer of the tiny models: Qwen2's pre-tokenizer and byte-level BPE with 1024 rows.

The pre-tokenizer's regular expression is what makes `<Image><tile_1>` merge to `><` exactly where
Qwen2's tokenizer does (tests/data has the golden ids of the real one).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sklearn
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from demo import questions
from demo.photographs import SUBJECTS

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"]
# Words of the descriptions that stand in for image embeddings while the language model is trained.
BLANK, SHEET = "blank", "sheet"
# Qwen2's: contractions, words with one leading character, single digits, punctuation, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def visual_words() -> list[str]:
    """Texts of one token each that name what a part of an image shows."""
    return [
        BLANK,
        SHEET,
        *questions.DIGIT_NAMES,
        *questions.COLOURS,
        *questions.DOCUMENT_WORDS,
        *(f" {subject}" for subject in SUBJECTS),
    ]


def train_tokenizer(folder: Path, num_rows: int, seed: int) -> PreTrainedTokenizerBase:
    """Train on the demo's training texts and save into `folder`; returns it as loaded from there.

    Raises:
        AssertionError: a visual word is not a single token (the vocabulary is too small).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_rows - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(np.random.default_rng(seed)), trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == num_rows, tokenizer.get_vocab_size()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|vision_pad|>"],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(folder)
    _finish_config(folder / "tokenizer_config.json")
    loaded = AutoTokenizer.from_pretrained(folder)
    for word in visual_words():
        assert len(loaded.encode(word)) == 1, f"{word!r} is {loaded.tokenize(word)}"
    return loaded


def _texts(rng: np.random.Generator):
    """Training texts; words that must become single tokens are repeated."""
    for _ in range(400):
        rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        place = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
        yield "system\nAnswer the questions."
        yield "user\n<Image>\n</Image>\nassistant\n"
        yield "<Image><tile_1>\n<tile_2>\n<tile_global_thumbnail>\n</Image>\n"
        yield questions.digit_question(rng)
        yield questions.document_question(rng)
        yield questions.photo_question(rng)
        yield questions.sheet_question(rng, rows, columns, *place)
        yield questions.chart_question(rng, ["red", "blue"], [1, 2])[0]
        yield questions.multi_image_question(rng, [1, 2, 3])[0]
    for word in visual_words():
        yield from [word] * 400
    for subject in SUBJECTS:
        yield from [questions.photo_answer(subject)] * 40
    for question, answer in questions.text_questions("train"):
        yield from [question, answer] * 20
    # Ordinary English fills the rows that are left.
    for description in sorted((Path(sklearn.__file__).parent / "datasets/descr").glob("*.rst")):
        yield description.read_text()


def _finish_config(path: Path) -> None:
    """Name the class that every release of transformers knows."""
    config = json.loads(path.read_text())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
