"""A small tokenizer of Qwen2's kind, small shards, and the tiny run's configuration over them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nvlm.config import RunConfig, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"]
# Qwen2's pre-tokenizer.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QUESTIONS = ["What is in the picture?", "Read the number.", "Which tile is red?", "Count the dots."]


def wrap_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Add what surrounds the BPE model in Qwen2's tokenizer."""
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE trained on the spot; tags come out in pieces, as in Qwen2's vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = wrap_tokenizer(Tokenizer(models.BPE())).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["<Image><tile_1>", "</Image>\n", "<tile_global_thumbnail>", "assistant\n", "user\n"]
    backend.train_from_iterator((text + QUESTIONS) * 20, trainer)
    wrap_tokenizer(backend).save_pretrained(folder)
    return folder


def draw_image(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A small picture with some structure, encoded."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return encoded.getvalue()


def make_sample(key: str, question: str, answer: str, images: list[bytes]) -> dict:
    """A sample as webdataset's writers take it."""
    messages = [
        {"role": "user", "content": "<image>\n" * len(images) + question},
        {"role": "assistant", "content": answer},
    ]
    sample: dict = {
        "__key__": key,
        "json": json.dumps({"messages": messages, "task": "test"}).encode(),
    }
    return sample | {f"{i}.png": image for i, image in enumerate(images)}


def write_shard(path: Path, samples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources: one image of 1 to 7 tiles, two images and several turns, and text alone."""
    root = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(7)
    sizes = [(100, 90), (300, 100), (224, 224), (640, 480), (90, 400), (480, 640)]
    for shard in range(2):
        write_shard(
            root / "train" / "single" / f"single-{shard:06d}.tar",
            [
                make_sample(
                    f"s{shard}-{i:03d}",
                    QUESTIONS[i % 4] * int(random.integers(1, 4)),
                    "number " + "7 " * int(random.integers(1, 30)),
                    [draw_image(*sizes[i % len(sizes)], seed=i)],
                )
                for i in range(20)
            ],
        )
    pairs = []
    for i in range(10):
        first, second = draw_image(120, 110, seed=i), draw_image(230, 110, seed=50 + i)
        pair = make_sample(f"p{i:03d}", "Do they differ?", "Yes.", [first, second])
        messages = json.loads(pair["json"])["messages"]
        messages += [
            {"role": "user", "content": "How?"},
            {"role": "assistant", "content": "The second is wider. " * (i + 1)},
        ]
        pairs.append(pair | {"json": json.dumps({"messages": messages}).encode()})
    write_shard(root / "train" / "pairs" / "pairs-000000.tar", pairs)
    write_shard(
        root / "train" / "text" / "text-000000.tar",
        [make_sample(f"t{i:03d}", f"What is {i} and {i}?", str(2 * i), []) for i in range(15)],
    )
    return root


@pytest.fixture
def make_config(tokenizer_folder: Path, shards: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The tiny SFT run over `shards`; arguments are overrides `key=value`."""

    def make(*overrides: str) -> RunConfig:
        return load_config(
            REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
            [
                f"model.tokenizer={tokenizer_folder}",
                f"data.root={shards}",
                f"data.index_dir={tmp_path / 'index'}",
                f"run.dir={tmp_path / 'run'}",
                "data.num_workers=0",
                "data.packing_window=32",
                "train.global_batch_size=4",
                *overrides,
            ],
        )

    return make
