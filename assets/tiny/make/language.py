"""Pretrains the tiny Qwen2 on the demo's tasks as text: described images stand in for real ones.

An image block has the layout of training (`<Image><tile_1>` + 16 places + ... + `</Image>`), but
each place holds the word that names what its cell shows. So the model learns to find a tile by its
tag and to read from it, and the projector has only to map features to word embeddings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from assets.tiny.make.optimizers import Optimizers
from assets.tiny.make.tokenizer import visual_words
from demo import questions, scenes
from demo.questions import pick
from demo.scenes import BLANK, Scene
from nvlm.config.schema import LanguageConfig

Generator = np.random.Generator
# Answers in pieces, each with whether it is trained on.
Pieces = list[tuple[str, bool]]
Turns = list[tuple[str, str | Pieces]]

_NUM_SHEETS, _NUM_OTHERS = 24, 40
# Noise on the stand-ins, in units of their root mean square: a projector is never exact.
_NOISE = 0.4
# Until which share of the steps how many cells are shown per tile of a sheet.
_COURSE = [(0.2, 1), (0.3, 2), (0.4, 4), (0.5, 8), (2.0, 16)]
_KINDS = ["sheets", "digits", "ocr", "charts", "photos", "multi_image", "text"]


@dataclass
class Conversation:
    """Token ids, labels (-100 where not trained) and which ids are stand-ins for image cells."""

    ids: list[int]
    labels: list[int]
    is_cell: list[bool]


class Writer:
    """Makes conversations of the demo's tasks with described images."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rng: Generator, split: str):
        self.tokenizer, self.rng, self.split = tokenizer, rng, split
        self.word_ids = {word: tokenizer.encode(word)[0] for word in visual_words()}
        self.image_token = tokenizer.convert_tokens_to_ids("<|vision_pad|>")

    def conversation(
        self, kind: str, with_drills: bool = False, num_places: int = 16
    ) -> Conversation:
        """A conversation about one task.

        `num_places` of at most 16 cells are shown per tile: fewer make an easier start.
        `with_drills` asks many questions about a sheet, see `_drills`.
        """
        images, turns = self._task(kind, with_drills)
        with_tags = kind == "sheets" or self.rng.random() < 0.6
        cells: list[int] = []
        marks = ""
        for image in images:
            tiles = image.words_of_tiles()
            marks += "<Image>"
            for number, words in enumerate(tiles, start=1):
                shown = _informative_cells(words, num_places)
                cells += [self.word_ids[word] for word in shown]
                tag = f"<tile_{number}>" if number < len(tiles) else "<tile_global_thumbnail>"
                marks += (tag if with_tags else "") + "<|vision_pad|>" * len(shown)
            marks += "</Image>\n"
        system = "<|im_start|>system\nAnswer the questions.<|im_end|>\n" if with_tags else ""
        made = Conversation([], [], [])
        for place, (question, answer) in enumerate(turns):
            before = (system + "<|im_start|>user\n" + marks) if place == 0 else "<|im_start|>user\n"
            prompt = f"{before}{question}<|im_end|>\n<|im_start|>assistant\n"
            prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
            made.ids += prompt_ids
            made.labels += [-100] * len(prompt_ids)
            pieces = [(answer, True)] if isinstance(answer, str) else answer
            for text, is_trained in [*pieces, ("<|im_end|>\n", place == len(turns) - 1)]:
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                made.ids += ids
                made.labels += ids if is_trained else [-100] * len(ids)
        made.is_cell = [token == self.image_token for token in made.ids]
        remaining = iter(cells)
        made.ids = [
            next(remaining) if is_cell else token for token, is_cell in zip(made.ids, made.is_cell)
        ]
        assert next(remaining, None) is None
        return made

    def _task(self, kind: str, with_drills: bool) -> tuple[list[Scene], Turns]:
        rng, split = self.rng, self.split
        if kind == "sheets":
            columns, rows = pick(rng, scenes.SHEET_GRIDS)
            scene, shown = scenes.sheet_scene(rng, split, (columns, rows))
            return [scene], self._drills(shown) if with_drills else [self._ask(shown)]
        if kind == "digits":
            digit = int(rng.integers(10))
            scene = scenes.digit_scene(rng, split, digit)
            return [scene], [(questions.digit_question(rng), str(digit))]
        if kind == "ocr":
            scene, text = scenes.document_scene(rng)
            return [scene], [(questions.document_question(rng), text)]
        if kind == "charts":
            scene, colours, heights = scenes.chart_scene(rng)
            return [scene], [questions.chart_question(rng, colours, heights)]
        if kind == "photos":
            scene, subject = scenes.photo_scene(rng, split)
            return [scene], [(questions.photo_question(rng), questions.photo_answer(subject))]
        if kind == "multi_image":
            digits = rng.permutation(10)[: int(rng.integers(2, 4))].tolist()
            drawn = [scenes.digit_scene(rng, split, digit) for digit in digits]
            return drawn, [questions.multi_image_question(rng, digits)]
        return [], [pick(rng, questions.text_questions(split))]

    def _ask(self, shown: list[list[int]], with_tag: bool = False) -> tuple[str, str | Pieces]:
        """A question about a sheet. `with_tag`: the answer names the tile before the digit."""
        rows, columns = len(shown), len(shown[0])
        row, column = int(self.rng.integers(rows)), int(self.rng.integers(columns))
        question = questions.sheet_question(self.rng, rows, columns, row + 1, column + 1)
        answer = str(shown[row][column])
        if not with_tag:
            return question, answer
        tag = f"<tile_{row * columns + column + 1}>"
        return f"Name the tile. {question}", f"{tag}{answer}"

    def _drills(self, shown: list[list[int]]) -> Turns:
        """Many questions about one sheet, of one of three kinds: the last is the demo's own.

        What follows each tag, in any order; the tag of a row and column with what stands
        behind it; what stands in a row and column. Mixing them in one conversation would let the
        later ones be answered from the earlier ones.
        """
        rows, columns = len(shown), len(shown[0])
        kind = self.rng.random()
        if kind < 0.35:
            by_tag: Pieces = []
            for number in self.rng.permutation(rows * columns).tolist():
                row, column = divmod(number, columns)
                by_tag += [(f"<tile_{number + 1}>", False), (str(shown[row][column]), True)]
            return [("Read the tiles.", by_tag)]
        return [self._ask(shown, with_tag=kind < 0.6) for _ in range(4)]


def _informative_cells(words: list[str], num_places: int) -> list[str]:
    """The stretch of `num_places` cells with the most that is not blank."""
    if num_places >= len(words):
        return words
    starts = range(len(words) - num_places + 1)
    best = max(starts, key=lambda start: sum(w != BLANK for w in words[start : start + num_places]))
    return words[best : best + num_places]


def build_language_model(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> Qwen2ForCausalLM:
    """A Qwen2 of these sizes, randomly initialised."""
    token_ids = tokenizer.get_vocab()
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_query_groups,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            initializer_range=0.05,
            tie_word_embeddings=False,
            use_cache=True,
            bos_token_id=token_ids["<|endoftext|>"],
            eos_token_id=token_ids["<|im_end|>"],
            pad_token_id=token_ids["<|endoftext|>"],
        )
    )


def pretrain_language(
    config: LanguageConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
    num_steps: int,
    last_step: int,
) -> None:
    """Train and save a Hugging Face folder with bfloat16 weights; the tokenizer stays as it is.

    The learning rate follows a schedule of `num_steps`, of which `last_step` are run.
    """
    torch.manual_seed(seed)
    model = build_language_model(config, tokenizer)
    rng = np.random.default_rng(seed)
    writer = Writer(tokenizer, rng, "train")
    optimizers = Optimizers([model], num_steps, matrix_lr=0.02, other_lr=3e-3)
    started = time.monotonic()
    for step in range(last_step):
        num_places = next(places for until, places in _COURSE if step / num_steps < until)
        sheets = [writer.conversation("sheets", True, num_places) for _ in range(_NUM_SHEETS)]
        others = [writer.conversation(pick(rng, _KINDS[1:])) for _ in range(_NUM_OTHERS)]
        losses = []
        for conversations in (sheets, others):
            loss = answer_loss(model, conversations, noise=_NOISE)
            (loss / 2).backward()
            losses.append(loss.item())
        optimizers.step(step)
        if step % 50 == 49 or step == last_step - 1:
            scores = evaluate(model, tokenizer, seed + 1)
            print(
                f"language step {step + 1}: loss sheets {losses[0]:.3f}, others {losses[1]:.3f}; "
                "answers right: "
                + ", ".join(f"{kind} {score:.2f}" for kind, score in scores.items())
                + f" ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
            model.train()
    model.bfloat16().save_pretrained(folder)


@torch.no_grad()
def evaluate(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int, num_each: int = 64
) -> dict[str, float]:
    """Share of answers of which every token is the likeliest, by kind; text is held-out."""
    writer = Writer(tokenizer, np.random.default_rng(seed), "heldout")
    scores = {}
    for kind in _KINDS:
        right = []
        for conversation in [writer.conversation(kind) for _ in range(num_each)]:
            logits, labels = answer_logits(model, [conversation], noise=0.0)
            right.append(bool((logits.argmax(-1) == labels).all()))
        scores[kind] = float(np.mean(right))
    return scores


def answer_loss(model: Qwen2ForCausalLM, conversations: list[Conversation], noise: float) -> Tensor:
    logits, labels = answer_logits(model, conversations, noise)
    return F.cross_entropy(logits.float(), labels)


def answer_logits(
    model: Qwen2ForCausalLM, conversations: list[Conversation], noise: float
) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocab] and labels [answer tokens]; rows are padded on the right."""
    length = max(len(conversation.ids) for conversation in conversations)
    shape = (len(conversations), length)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    is_cell = torch.zeros(shape, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        end = len(conversation.ids)
        ids[row, :end] = torch.tensor(conversation.ids)
        labels[row, :end] = torch.tensor(conversation.labels)
        is_cell[row, :end] = torch.tensor(conversation.is_cell)
    embeddings = model.get_input_embeddings()(ids)
    if noise:
        size = embeddings.detach()[is_cell].square().mean().sqrt()
        jitter = torch.randn_like(embeddings) * (noise * size)
        embeddings = embeddings + jitter * is_cell.unsqueeze(-1)
    # Right padding under a causal mask cannot reach a label, so no padding mask is needed.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        predicts = torch.zeros_like(is_cell)
        predicts[:, :-1] = labels[:, 1:] != -100
        logits = model.lm_head(hidden[predicts])
    return logits, labels[:, 1:][labels[:, 1:] != -100]
