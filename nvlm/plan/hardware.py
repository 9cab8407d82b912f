"""Cards, and the links between them, as their makers state them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from nvlm.errors import ConfigError

_MIB = 2**20


@dataclass(frozen=True)
class Card:
    """A GPU in a node of its usual kind.

    capability: compute capability, such as (9, 0).
    memory_bytes: all that the driver shows (`nvidia-smi`, memory.total).
    peak_flops: bf16 products per second, dense, summed in fp32.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second between the cards of a node, of one card in one direction.
    network_bandwidth: the same between nodes.
    gpus_per_node: cards that such links join.
    source: where the numbers come from.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    gpus_per_node: int
    source: str


CARDS = {
    card.name: card
    for card in (
        Card(
            "h100-80gb", (9, 0), 81559 * _MIB, 989.4e12, 3.35e12, 450e9, 50e9, 8,
            "NVIDIA H100 SXM5 datasheet; DGX H100: 18 NVLinks of 25 GB/s, one 400 Gb/s port a GPU",
        ),
        Card(
            "h200", (9, 0), 143771 * _MIB, 989.4e12, 4.8e12, 450e9, 50e9, 8,
            "NVIDIA H200 SXM datasheet; DGX H200: 18 NVLinks of 25 GB/s, one 400 Gb/s port a GPU",
        ),
        Card(
            "b200", (10, 0), 183359 * _MIB, 2250e12, 8e12, 900e9, 50e9, 8,
            "NVIDIA DGX B200 datasheet: 18 NVLinks of 50 GB/s, one 400 Gb/s port a GPU",
        ),
        Card(
            "a100-80gb", (8, 0), 81920 * _MIB, 312e12, 2.039e12, 300e9, 25e9, 8,
            "NVIDIA A100 SXM4 datasheet; DGX A100: 12 NVLinks of 25 GB/s, one 200 Gb/s port a GPU",
        ),
        Card(
            "a100-40gb", (8, 0), 40960 * _MIB, 312e12, 1.555e12, 300e9, 25e9, 8,
            "NVIDIA A100 SXM4 datasheet; DGX A100: 12 NVLinks of 25 GB/s, one 200 Gb/s port a GPU",
        ),
        Card(
            "l40s", (8, 9), 46068 * _MIB, 362e12, 0.864e12, 32e9, 12.5e9, 8,
            "NVIDIA L40S datasheet: PCIe 4.0 x16; a node with four 200 Gb/s ports for eight",
        ),
        Card(
            "rtx-4090", (8, 9), 24564 * _MIB, 165.2e12, 1.008e12, 32e9, 3.125e9, 4,
            "NVIDIA Ada architecture paper; PCIe 4.0 x16; one 100 Gb/s port for four",
        ),
    )
}  # fmt: skip
DEFAULT_CARD = "h100-80gb"
# What their driver calls them: all of these words are in the device's name.
_WORDS = {
    "h100-80gb": ("H100", "HBM3"),
    "h200": ("H200",),
    "b200": ("B200",),
    "a100-80gb": ("A100", "SXM", "80GB"),
    "a100-40gb": ("A100", "SXM", "40GB"),
    "l40s": ("L40S",),
    "rtx-4090": ("4090",),
}


def card_of_device(device_name: str) -> Card | None:
    """The card of that name, as in `NVIDIA H100 80GB HBM3`; None where it is not known."""
    words = device_name.replace("-", " ").split()
    known = (
        card
        for name, card in CARDS.items()
        if all(any(word.startswith(part) for word in words) for part in _WORDS[name])
    )
    return next(known, None)


def card_named(name: str) -> Card:
    """The card that `--gpu` names.

    Raises:
        ConfigError: it is not known.
    """
    if name in CARDS:
        return CARDS[name]
    given = name.lower()
    near = [known for known in CARDS if known.startswith(given)]
    near = near or difflib.get_close_matches(given, CARDS, n=1)
    hint = f"did you mean {near[0]}? Known: " if near else "known: "
    raise ConfigError(
        f"--gpu {name}: no such card; {hint}{', '.join(CARDS)}. Another one: the nearest of these, "
        "its numbers given with --assume"
    )
