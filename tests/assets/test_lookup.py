"""How the tiny model of the grids begins, and what it was taught."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.paths import REPOSITORY
from transformers import AutoTokenizer

from assets.tiny.make import lookup
from assets.tiny.make.language import build_language_model
from nvlm.config import load_config

CONFIG = load_config(REPOSITORY / "configs/run/tiny/sft.yaml").model.language
TOKENIZER = AutoTokenizer.from_pretrained(REPOSITORY / "assets" / "tiny" / "qwen2")


@torch.no_grad()
def test_heads_of_the_first_layer_begin_as_distances():
    """By transformers' own attention weights: most of head h is on the token h + 1 places back."""
    torch.manual_seed(0)
    model = build_language_model(CONFIG, TOKENIZER)
    lookup.start_with_distances(model, CONFIG)
    model.set_attn_implementation("eager")
    weights = model(torch.randint(1024, (1, 40)), output_attentions=True).attentions[0][0]
    for head in range(CONFIG.num_attention_heads):
        for place in range(head + 1, 40):
            assert weights[head, place].argmax() == place - head - 1
            assert weights[head, place].max() > 0.7  # 0.86 at the least in trials


@pytest.mark.parametrize("design", lookup.DESIGNS)
def test_what_is_trained_is_what_the_sheet_shows(design):
    writer = lookup.SheetWriter(TOKENIZER, np.random.default_rng(0))
    seen = set()
    for _ in range(60):
        row, kind = writer.conversation(design, (3, 2), 4, lookup.PARTS[-1].shares)
        seen.add(kind)
        words = [TOKENIZER.decode(t) for t, cell in zip(row.ids, row.is_cell) if cell]
        assert len(words) == 7 * 4
        shown = [
            str(lookup.DIGIT_NAMES.index(word)) for word in words if word in lookup.DIGIT_NAMES
        ]
        assert len(shown) == 6
        text, trained = TOKENIZER.decode(row.ids), [t for t in row.labels if t != -100]
        told = TOKENIZER.decode(trained).replace("<|im_end|>\n", "")
        if kind == "reading":
            assert told == "".join(shown)
        elif kind == "tile":
            asked = [int(part[0]) for part in text.split("is in tile ")[1:]]
            assert list(told) == [shown[tile - 1] for tile in asked]
        elif kind == "cell":
            asked = [(int(part[0]), int(part[2])) for part in text.split("is in R")[1:]]
            assert list(told) == [shown[(r - 1) * 3 + c - 1] for r, c in asked]
    assert seen >= {"reading", "tile", "cell", "counting"}
