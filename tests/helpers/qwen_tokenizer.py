"""Qwen's tokenizer from its published byte-pair ranks.

The ranks are the file `qwen.tiktoken` that the package `dashscope` ships. Qwen2 and Qwen2.5 use the
same ones; their special tokens follow from id 151643 on.
"""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen2.5's, in order of their ids from 151643 on, as far as the tests need them.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip


def build_qwen_tokenizer() -> PreTrainedTokenizerFast:
    ranks = read_ranks()
    symbols = _byte_symbols()
    spell = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    vocabulary = {spell[token]: rank for token, rank in ranks.items()}
    merges = [
        tuple(spell[part] for part in _last_merge(ranks, token, rank))
        for token, rank in ranks.items()
        if len(token) > 1
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    return wrap_tokenizer(tokenizer, SPECIAL_TOKENS)


def wrap_tokenizer(backend: Tokenizer, special_tokens: list[str]) -> PreTrainedTokenizerFast:
    """Add what surrounds the BPE model in Qwen2's tokenizer."""
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")


def read_ranks() -> dict[bytes, int]:
    """Byte strings in order of their rank, which is their id."""
    package = importlib.util.find_spec("dashscope")
    assert package is not None, "pip install 'nvlm[dev]' brings dashscope, which ships the ranks"
    assert package.origin is not None
    lines = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    assert list(ranks.values()) == list(range(151643))
    return ranks


def _last_merge(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes]:
    """The two tokens that byte-pair encoding joins last to make `token`."""
    splits = [(token[:i], token[i:]) for i in range(1, len(token))]
    splits = [
        (left, right)
        for left, right in splits
        if ranks.get(left, rank) < rank and ranks.get(right, rank) < rank
    ]
    if len(splits) == 1:
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        first = pairs.index(min(pairs))
        assert pairs[first] < rank
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    symbols = {byte: chr(byte) for byte in plain}
    symbols |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]
