"""A small tokenizer of Qwen2's kind, small shards, and the tiny run's configuration over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from helpers.paths import REPOSITORY
from helpers.qwen_tokenizer import build_qwen_tokenizer, wrap_tokenizer
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from nvlm.config import RunConfig, load_config
from nvlm.data.text.chat import ChatTokenizer, load_chat_tokenizer

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"]
QUESTIONS = ["What is in the picture?", "Read the number.", "Which tile is red?", "Count the dots."]


@pytest.fixture(scope="session")
def qwen_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(build_qwen_tokenizer(), "<|vision_pad|>")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE trained on the spot, of Qwen2's kind."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = wrap_tokenizer(Tokenizer(models.BPE()), CONTROL_TOKENS).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["<Image><tile_1>", "</Image>\n", "<tile_global_thumbnail>", "assistant\n", "user\n"]
    backend.train_from_iterator((text + QUESTIONS) * 20, trainer)
    wrap_tokenizer(backend, CONTROL_TOKENS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    return load_chat_tokenizer(str(tokenizer_folder), "<|vision_pad|>")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources: one image of 1 to 7 tiles, two images and several turns, and text alone."""
    root = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(7)
    sizes = [(100, 90), (300, 100), (224, 224), (640, 480), (90, 400), (480, 640)]
    for shard in range(2):
        samples = [
            make_sample(
                f"s{shard}-{i:03d}",
                QUESTIONS[i % 4] * int(random.integers(1, 4)),
                "number " + "7 " * int(random.integers(1, 30)),
                [draw_image(*sizes[i % len(sizes)], seed=i)],
            )
            for i in range(20)
        ]
        write_shard(root / "train" / "single" / f"single-{shard:06d}.tar", samples)
    pairs = []
    for i in range(10):
        turns = [
            ("user", "<image>\n<image>\nDo they differ?"),
            ("assistant", "Yes."),
            ("user", "How?"),
            ("assistant", "The second is wider. " * (i + 1)),
        ]
        images = {
            "0.png": draw_image(120, 110, seed=i),
            "1.jpg": draw_image(230, 110, i, "JPEG"),
        }
        pairs.append({"__key__": f"p{i:03d}", "json": as_json(*turns)} | images)
    write_shard(root / "train" / "pairs" / "pairs-000000.tar", pairs)
    texts = [make_sample(f"t{i:03d}", f"What is {i} and {i}?", str(2 * i), []) for i in range(15)]
    write_shard(root / "train" / "text" / "text-000000.tar", texts)
    return root


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="session")
def config_in(tokenizer_folder: Path, shards: Path, index_folder: Path) -> Callable[..., RunConfig]:
    """The tiny SFT run over `shards`; arguments are its folder and overrides `key=value`."""

    def make(folder: Path, *overrides: str) -> RunConfig:
        return load_config(
            REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
            [
                f"model.tokenizer={tokenizer_folder}",
                f"data.root={shards}",
                f"data.index_dir={index_folder}",
                f"run.dir={folder}",
                "data.num_workers=0",
                "data.packing_window=32",
                "train.global_batch_size=4",
                *overrides,
            ],
        )

    return make


@pytest.fixture
def make_config(config_in: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    """`config_in` a folder of the test's."""
    return partial(config_in, tmp_path / "run")
