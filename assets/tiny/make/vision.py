"""Pretrains the tiny InternViT: name what every 28-pixel cell of a tile shows.

The linear head on the pixel-shuffled features is thrown away; what stays is an encoder whose
features say linearly what is where, as a projector can use them. Only training material is drawn.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.tiny.make.optimizers import Optimizers
from assets.tiny.make.tokenizer import visual_words
from demo import scenes
from demo.questions import pick
from demo.scenes import Scene
from nvlm.config.schema import VisionConfig
from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel
from nvlm.data.images.image import to_pixels
from nvlm.data.images.tiling import cut_tiles

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
# Tiles in memory to draw batches from, and new ones per step.
_POOL_SIZE, _NUM_FRESH = 6000, 24


class TilePool:
    """Tiles [n, 3, 112, 112] uint8 and the words of their cells [n, 16], ever renewed."""

    def __init__(self, rng: np.random.Generator, split: str, size: int):
        self.rng, self.split = rng, split
        self.word_ids = {word: number for number, word in enumerate(visual_words())}
        self.tiles = torch.zeros(size, 3, scenes.TILE, scenes.TILE, dtype=torch.uint8)
        self.words = torch.zeros(size, 16, dtype=torch.long)
        self.next = 0
        # matplotlib is slow: charts are drawn once and shown again.
        self.charts = [_drawn(scenes.chart_scene(rng)[0]) for _ in range(min(300, size // 10))]
        self.renew(size)

    def renew(self, num_tiles: int) -> None:
        drawn = 0
        while drawn < num_tiles:
            is_chart = self.rng.random() < 0.08
            tiles, words = (
                pick(self.rng, self.charts)
                if is_chart
                else _drawn(random_scene(self.rng, self.split))
            )
            for tile, names in zip(tiles, words):
                self.tiles[self.next] = torch.from_numpy(tile.copy())
                self.words[self.next] = torch.tensor([self.word_ids[name] for name in names])
                self.next = (self.next + 1) % len(self.tiles)
            drawn += len(tiles)

    def batch(self, num_tiles: int) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(self.rng.integers(len(self.tiles), size=num_tiles))
        return self.tiles[chosen], self.words[chosen]


def random_scene(rng: np.random.Generator, split: str) -> Scene:
    """A scene of any kind but charts."""
    kind = rng.random()
    if kind < 0.22:
        return scenes.digit_scene(rng, split)
    if kind < 0.52:
        return scenes.crowd_scene(rng, split)
    if kind < 0.62:
        return scenes.sheet_scene(rng, split, pick(rng, scenes.SHEET_GRIDS))[0]
    if kind < 0.87:
        return scenes.document_scene(rng)[0]
    return scenes.photo_scene(rng, split)[0]


def _drawn(scene: Scene) -> tuple[np.ndarray, list[list[str]]]:
    tiles = cut_tiles(to_pixels(scene.draw()), 6, True, scenes.TILE)
    words = scene.words_of_tiles()
    assert len(tiles) == len(words), "tiling does not give the scene's grid"
    return tiles, words


def normalise(tiles: Tensor) -> Tensor:
    return (tiles.float() / 255 - _MEAN) / _STD


def pixel_shuffle(hidden: Tensor) -> Tensor:
    """[n, r * r, c] -> [n, r * r / 4, 4 c]: 2 x 2 patches become one token, row-major."""
    num_tiles, num_patches, channels = hidden.shape
    side = int(num_patches**0.5)
    grid = hidden.view(num_tiles, side // 2, 2, side // 2, 2, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(num_tiles, num_patches // 4, 4 * channels)


def build_vision_model(config: VisionConfig) -> InternVisionModel:
    """InternViT as OpenGVLab stores it (real heads only), randomly initialised."""
    return InternVisionModel(
        InternVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.norm_epsilon,
            initializer_range=0.02,
            # 0.1 suits 45 layers; four layers trained from scratch learn faster with 1.
            initializer_factor=1.0,
        )
    )


@torch.no_grad()
def start_from_patch_statistics(model: InternVisionModel, tiles: Tensor) -> None:
    """Whitened principal components as patch embedding, sines and cosines as positions.

    Training would have to find something like both first.
    """
    embeddings = model.embeddings
    size, channels = model.config.patch_size, model.config.hidden_size
    patches = F.unfold(normalise(tiles), size, stride=size).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T).double())
    values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
    components = (vectors / (values + 0.02 * size).sqrt()).T.float()
    embeddings.patch_embedding.weight.copy_(components.view(channels, 3, size, size))
    embeddings.patch_embedding.bias.copy_(-components @ mean)
    side = model.config.image_size // size
    places = torch.arange(side) / side * torch.pi
    rates = torch.arange(1, channels // 4 + 1) / 4
    waves = torch.cat([(places[:, None] * rates).sin(), (places[:, None] * rates).cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    # A random rotation spreads the positions over all channels.
    rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
    grid = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    embeddings.position_embedding[0, 1:] = 0.5 * grid @ rotation


def pretrain_vision(
    config: VisionConfig, folder: Path, seed: int, num_steps: int, batch_size: int = 96
) -> None:
    """Train and save a Hugging Face folder with bfloat16 weights."""
    torch.manual_seed(seed)
    pool = TilePool(np.random.default_rng(seed), "train", _POOL_SIZE)
    heldout = TilePool(np.random.default_rng(seed + 1), "heldout", 1500)
    model = build_vision_model(config)
    start_from_patch_statistics(model, pool.tiles[:1500])
    num_words = len(visual_words())
    channels = 4 * config.hidden_size
    head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_words))
    optimizers = Optimizers([model, head], num_steps, matrix_lr=0.02, other_lr=2e-3)
    started = time.monotonic()
    for step in range(num_steps):
        pool.renew(_NUM_FRESH)
        tiles, words = pool.batch(batch_size)
        # For 65 tokens the plain kernel is faster backwards than the flash one (0.41 s against
        # 0.54 s for the model's whole backward pass of 96 tiles on one core).
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            features = model(normalise(tiles)).last_hidden_state[:, 1:]
            logits = head(pixel_shuffle(features))
        # Blank cells are the majority and the easiest.
        weights = torch.where(words == 0, 0.3, 1.0)
        loss = F.cross_entropy(logits.float().flatten(0, 1), words.flatten(), reduction="none")
        loss = (loss * weights.flatten()).sum() / weights.sum()
        loss.backward()
        optimizers.step(step)
        if step % 50 == 49 or step == num_steps - 1:
            scores = _accuracies(model, head, heldout)
            print(
                f"vision step {step + 1}: loss {loss.item():.3f}, held-out cells right: "
                + ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
                + f" ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
        if step % 200 == 199 or step == num_steps - 1:
            copy.deepcopy(model).bfloat16().save_pretrained(folder)


@torch.no_grad()
def _accuracies(model: nn.Module, head: nn.Module, pool: TilePool) -> dict[str, float]:
    """Share of cells named correctly, by what they show."""
    guesses = []
    for tiles in pool.tiles.split(250):
        features = model(normalise(tiles)).last_hidden_state[:, 1:]
        guesses.append(head(pixel_shuffle(features)).argmax(-1))
    right = torch.cat(guesses) == pool.words
    names = visual_words()
    kinds = {"blank": range(1), "sheet": range(1, 2), "digit": range(2, 12), "bar": range(12, 17)}
    first_subject = next(i for i, name in enumerate(names) if name.startswith(" "))
    kinds |= {"word": range(17, first_subject), "photo": range(first_subject, len(names))}
    return {
        kind: right[(pool.words >= ids.start) & (pool.words < ids.stop)].float().mean().item()
        for kind, ids in kinds.items()
    }
