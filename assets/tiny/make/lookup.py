"""Pretrains a tiny Qwen2 that looks things up by keys, for the grids of docs/findings.md.

    python -m assets.tiny.make.lookup [--out assets/tiny/lookup] [--seed 0]

Real language models arrive with heads that find what stands behind a key; four layers trained on
the demo's tasks alone do not grow them (docs/experiments.md). Its text describes sheets of one
digit per tile, words standing in for image cells, and names tiles by every design of tile tags
alike.

The first layer's heads begin as "the token so many places before", 1 to 8: a bias of queries and
keys whose product, after rotation, is largest at that distance. Everything else begins at random
and all of it trains.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM

from assets.tiny.make.language import (
    Conversation,
    answer_logits,
    answer_loss,
    build_language_model,
)
from assets.tiny.make.optimizers import Optimizers
from demo.questions import DIGIT_NAMES
from demo.scenes import BLANK, SHEET, TILE
from nvlm.config import load_config
from nvlm.config.schema import LanguageConfig
from nvlm.config.tiles import TileTags
from nvlm.sizes.visual import VisualLayout

Generator = np.random.Generator

REPOSITORY = Path(__file__).resolve().parents[3]
DESIGNS: list[TileTags] = ["1d", "2d_grid", "2d_box", "none"]
# (columns, rows) of sheets, and how often each is drawn.
GRIDS = [(2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2), (2, 3)]
_SHARES = [0.08, 0.08, 0.2, 0.12, 0.12, 0.2, 0.2]
_BATCH_SIZE = 32
_NOISE = 0.3
# Cells shown per tile until which share of the steps; then 4, and now and then 16.
_COURSE, _NUM_CELLS, _MANY_CELLS = [(0.08, 1), (0.12, 2)], 4, 16
_NUM_FREQUENCIES, _AMPLITUDE = 4, 5.0
_USER, _ANSWER, _END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
_WHICH = "Which digit is in"
_OPENING = f"<|im_start|>system\nAnswer the questions.<|im_end|>\n{_USER}<Image>"


@dataclass(frozen=True)
class Part:
    """Steps of one schedule, of which `last_step` are run, and how often each kind is asked."""

    name: str
    num_steps: int
    last_step: int
    matrix_lr: float
    other_lr: float
    has_course: bool
    shares: dict[str, float]


# The second part asks what stands behind a key that is at most eight tokens back.
PARTS = [
    Part(
        "first", 900, 750, 0.02, 3e-3, True,
        {"by tag": 0.4, "reading": 0.15, "counting": 0.1, "list of places": 0.15, "place": 0.2},
    ),
    Part(
        "second", 300, 300, 0.01, 1.5e-3, False,
        {"by tag": 0.25, "reading": 0.1, "counting": 0.07, "tile": 0.15, "list of cells": 0.21,
         "cell": 0.22},
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """What questions are asked about; tiles count from 0, row by row."""

    grid: tuple[int, int]  # (columns, rows)
    tags: Sequence[str]
    shown: NDArray[np.int64]  # digit of each tile

    @property
    def size(self) -> str:
        return f"The sheet has {self.grid[1]} rows and {self.grid[0]} columns."

    def place(self, tile: int) -> str:
        row, column = divmod(tile, self.grid[0])
        return f"row {row + 1}, column {column + 1}"

    def cell(self, tile: int) -> str:
        row, column = divmod(tile, self.grid[0])
        return f"R{row + 1}C{column + 1}"


class SheetWriter:
    """Writes conversations about sheets, token by token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rng: Generator):
        self.rng = rng
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def conversation(
        self,
        design: TileTags,
        grid: tuple[int, int],
        num_cells: int,
        shares: Mapping[str, float],
    ) -> tuple[Conversation, str]:
        """A sheet whose digits are drawn, and questions of one of the kinds of `shares`, named."""
        columns, rows = grid
        shown = self.rng.integers(10, size=columns * rows)
        tags = VisualLayout(design, True, 6, TILE, num_cells).tags(grid)
        made = Conversation([], [], [])
        self._add(made, _OPENING)
        for tile, tag in enumerate(tags):
            self._add(made, tag)
            words = [SHEET if tile == len(shown) else BLANK] * num_cells
            if tile < len(shown):
                words[self.rng.integers(num_cells)] = DIGIT_NAMES[shown[tile]]
            for word in words:
                self._add(made, word, is_cell=True)
        self._add(made, "</Image>\n")
        return made, self._ask(made, Sheet(grid, tags, shown), shares)

    def _ask(self, made: Conversation, sheet: Sheet, shares: Mapping[str, float]) -> str:
        """Questions of a kind drawn by `shares`; without tags those by tag become readings."""
        drawn, kinds = self.rng.random(), list(shares)
        ends = np.cumsum(list(shares.values()))[:-1].tolist()
        kind = kinds[sum(drawn >= end for end in ends)]
        if kind == "by tag" and not sheet.tags[0]:
            kind = "reading"
        getattr(self, f"_{kind.replace(' ', '_')}")(made, sheet)
        return kind

    def _by_tag(self, made: Conversation, sheet: Sheet) -> None:
        """Tags in any order, what stands behind each to be told."""
        self._add(made, f"Tiles:{_ANSWER}")
        # Tags of boxes are long.
        num = 3 if "box" in sheet.tags[0] else 6
        for tile in map(int, self.rng.permutation(len(sheet.shown))[:num]):
            self._add(made, sheet.tags[tile])
            self._add(made, str(sheet.shown[tile]), is_trained=True)

    def _reading(self, made: Conversation, sheet: Sheet) -> None:
        self._add(made, f"Read all digits in order.{_ANSWER}")
        for text in [*map(str, sheet.shown), _END]:
            self._add(made, text, is_trained=True)

    def _counting(self, made: Conversation, sheet: Sheet) -> None:
        rng, shown = self.rng, sheet.shown
        self._add(made, f"How many tiles show the digit?{_ANSWER}")
        for _ in range(3):
            is_there = rng.random() < 0.8
            digit = shown[rng.integers(len(shown))] if is_there else rng.integers(10)
            self._add(made, f" {digit}:")
            self._add(made, str((shown == digit).sum()), is_trained=True)

    def _list_of_places(self, made: Conversation, sheet: Sheet) -> None:
        self._add(made, sheet.size + _ANSWER)
        for tile in self.rng.permutation(len(sheet.shown))[:4]:
            self._add(made, sheet.place(tile))
            self._add(made, ":")
            self._add(made, str(sheet.shown[tile]), is_trained=True)
            self._add(made, "\n")

    def _list_of_cells(self, made: Conversation, sheet: Sheet) -> None:
        self._add(made, sheet.size + _ANSWER)
        for tile in self.rng.permutation(len(sheet.shown))[:6]:
            self._add(made, f" {sheet.cell(tile)}")
            self._add(made, ":")
            self._add(made, str(sheet.shown[tile]), is_trained=True)

    def _place(self, made: Conversation, sheet: Sheet) -> None:
        self._turns(made, sheet, 2, lambda tile: f"{sheet.size} {_WHICH} {sheet.place(tile)}?")

    def _cell(self, made: Conversation, sheet: Sheet) -> None:
        self._turns(made, sheet, 3, lambda tile: f"{sheet.size} {_WHICH} {sheet.cell(tile)}?")

    def _tile(self, made: Conversation, sheet: Sheet) -> None:
        self._turns(made, sheet, 3, lambda tile: f"{_WHICH} tile {tile + 1}?")

    def _turns(
        self, made: Conversation, sheet: Sheet, num: int, question: Callable[[int], str]
    ) -> None:
        for number, tile in enumerate(self.rng.permutation(len(sheet.shown))[:num].tolist()):
            if number:
                self._add(made, _USER)
            self._add(made, question(tile) + _ANSWER)
            self._add(made, str(sheet.shown[tile]), is_trained=True)
            self._add(made, _END, is_trained=True)

    def _add(self, made: Conversation, text: str, is_trained=False, is_cell=False) -> None:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        ids = self._known[text]
        made.ids += ids
        made.labels += ids if is_trained else [-100] * len(ids)
        made.is_cell += [is_cell] * len(ids)


@torch.no_grad()
def start_with_distances(model: Qwen2ForCausalLM, config: LanguageConfig) -> None:
    """Have head h of the first layer attend to the token h + 1 places before.

    Rotation turns the pair of channels i and i + d/2 by theta_i = base^(-2i/d) per position. With
    key bias a and the query bias a turned by -theta_i (h + 1), their product at distance D is the
    sum over i of a^2 cos(theta_i (D - h - 1)): largest at D = h + 1.
    """
    half = config.head_dim // 2
    theta = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    amplitude = torch.zeros(half, dtype=torch.float64)
    amplitude[:_NUM_FREQUENCIES] = _AMPLITUDE
    attention: Any = model.model.layers[0].self_attn
    key = torch.cat([amplitude, torch.zeros_like(amplitude)])
    attention.k_proj.bias.copy_(key.repeat(config.num_query_groups))
    angles = [-theta * (head + 1) for head in range(config.num_attention_heads)]
    queries = [torch.cat([amplitude * a.cos(), amplitude * a.sin()]) for a in angles]
    attention.q_proj.bias.copy_(torch.cat(queries))
    attention.q_proj.weight.mul_(0.1)
    attention.k_proj.weight.mul_(0.1)


def cells_of_step(step: int, num_steps: int) -> int:
    """How many cells a tile has in the text of `step`, from 0, of the first part."""
    done = step / num_steps
    for until, cells in _COURSE:
        if done < until:
            return cells
    return _MANY_CELLS if done > 0.5 and step // len(DESIGNS) % 5 == 4 else _NUM_CELLS


def pretrain_lookup(
    config: LanguageConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
    after_step: Callable[[str, int, float], None] = lambda part, step, loss: None,
) -> None:
    """Train both parts and save a Hugging Face folder with bfloat16 weights.

    after_step: called with the part's name, the step, from 1, and its loss.
    """
    torch.manual_seed(seed)
    model = build_language_model(config, tokenizer)
    start_with_distances(model, config)
    for part in PARTS:
        rng = np.random.default_rng(seed)
        writer = SheetWriter(tokenizer, rng)
        optimizers = Optimizers([model], part.num_steps, part.matrix_lr, part.other_lr)
        for step in range(part.last_step):
            design = DESIGNS[step % len(DESIGNS)]
            cells = cells_of_step(step, part.num_steps) if part.has_course else _NUM_CELLS
            grid = GRIDS[rng.choice(len(GRIDS), p=_SHARES)]
            rows = [
                writer.conversation(design, grid, cells, part.shares)[0] for _ in range(_BATCH_SIZE)
            ]
            loss = answer_loss(model, rows, _NOISE)
            loss.backward()
            optimizers.step(step)
            after_step(part.name, step + 1, loss.item())
    model.bfloat16().save_pretrained(folder)


@torch.no_grad()
def measure_lookup(
    folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int, num_each: int = 400
) -> dict[str, dict[str, float]]:
    """Design -> kind of question -> share of trained answer tokens that are the likeliest.

    Chance at a digit of the sheet is about 0.3; counts are mostly 1.
    """
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    writer = SheetWriter(tokenizer, np.random.default_rng(seed))
    shares = PARTS[-1].shares
    found: dict[str, dict[str, float]] = {}
    for design in DESIGNS:
        right: dict[str, list[bool]] = {kind: [] for kind in shares}
        for number in range(num_each):
            grid = GRIDS[number % len(GRIDS)]
            row, kind = writer.conversation(design, grid, _NUM_CELLS, shares)
            logits, labels = answer_logits(model, [row], noise=0.0)
            is_digit = labels != tokenizer.convert_tokens_to_ids("<|im_end|>")
            right[kind] += (logits.argmax(-1) == labels)[is_digit].tolist()
        found[design] = {kind: float(np.mean(hits)) for kind, hits in right.items() if hits}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets" / "tiny" / "lookup")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(REPOSITORY / "configs/run/tiny/sft.yaml").model.language
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets" / "tiny" / "qwen2")
    started = time.monotonic()

    def say_now_and_then(part: str, step: int, loss: float) -> None:
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"{part} part, step {step}: loss {loss:.3f} ({seconds:.0f} s)", flush=True)

    pretrain_lookup(config, tokenizer, arguments.out, arguments.seed, say_now_and_then)
    for design, scores in measure_lookup(arguments.out, tokenizer, arguments.seed + 1).items():
        print(f"{design}: " + ", ".join(f"{kind} {score:.2f}" for kind, score in scores.items()))


if __name__ == "__main__":
    main()
