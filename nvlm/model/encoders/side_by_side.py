"""Several encoders that read the same tile, features side by side, in torch alone.

An export takes this file along: what an encoder is given of a tile is the same there.

Shape suffixes: n tiles, p patches of a tile, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Of an encoder: width and height of its tiles, mean and deviation of RGB values in 0..1.
Input = tuple[int, Sequence[float], Sequence[float]]


def read_side_by_side(
    tiles: Tensor, encoders: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Input]
) -> Tensor:
    """tiles [n, 3, size, size], uint8 or in 0..1 -> channels of all encoders, in their order
    [n, p, sum of c].

    Args:
        encoders: normalised pixels [n, 3, own size, own size] -> [n, p, c].
        inputs: one for each encoder.
    """
    pixels = tiles.float() / 255 if tiles.dtype == torch.uint8 else tiles.float()
    features = [
        encoder(normalized(resized(pixels, size), mean, std))
        for encoder, (size, mean, std) in zip(encoders, inputs, strict=True)
    ]
    first = features[0]
    return torch.cat([one.to(first.device, first.dtype) for one in features], dim=-1)


def resized(pixels: Tensor, size: int) -> Tensor:
    """[n, 3, h, w] fp32 -> [n, 3, size, size], bilinear with antialiasing.

    As they are where the size is theirs. Values are not rounded to 1/255: equal pixels would
    otherwise differ by that much wherever two devices add in another order.
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Values in 0..1, [n, 3, h, w], with mean 0 and deviation 1 of what was trained on.

    Numbers, not tensors: a copy to the device would wait for it.
    """
    channels = zip(pixels.unbind(1), mean, std, strict=True)
    return torch.stack([(one - m) / s for one, m, s in channels], dim=1)
