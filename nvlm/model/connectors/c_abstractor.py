"""From encoder patches to language-model embeddings: convolutions around adaptive pooling.

Honeybee's C-Abstractor (Cha et al. 2023, arXiv 2312.06742). Its blocks are those of timm's
`RegStage` (depthwise, a gate of a quarter of the input's width, `LayerNorm2d`, SiLU), with the same
names of parameters.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c channels, h and w rows and
columns of the map of patches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of each place of a map."""

    def forward(self, map_nchw: Tensor) -> Tensor:
        return super().forward(map_nchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Convolution(nn.Module):
    """Without a bias, and a norm behind it."""

    def __init__(self, num_inputs: int, num_outputs: int, size: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            num_inputs, num_outputs, size, padding=size // 2, groups=groups, bias=False
        )
        self.bn = LayerNorm2d(num_outputs, eps=1e-5)

    def forward(self, map_nchw: Tensor) -> Tensor:
        return self.bn(self.conv(map_nchw))


class Gate(nn.Module):
    """Squeeze and excitation: each channel times a share that the whole map decides."""

    def __init__(self, num_channels: int, num_squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(num_channels, num_squeezed, 1)
        self.fc2 = nn.Conv2d(num_squeezed, num_channels, 1)

    def forward(self, map_nchw: Tensor) -> Tensor:
        mean_nc11 = map_nchw.mean((2, 3), keepdim=True)
        return map_nchw * self.fc2(functional.silu(self.fc1(mean_nc11))).sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.conv1 = Convolution(num_inputs, num_outputs)
        self.conv2 = Convolution(num_outputs, num_outputs, size=3, groups=num_outputs)
        self.se = Gate(num_outputs, round(num_inputs * 0.25))
        self.conv3 = Convolution(num_outputs, num_outputs)
        self.downsample = (
            nn.Identity() if num_inputs == num_outputs else Convolution(num_inputs, num_outputs)
        )

    def forward(self, map_nchw: Tensor) -> Tensor:
        inner = functional.silu(self.conv1(map_nchw))
        inner = self.se(functional.silu(self.conv2(inner)))
        return functional.silu(self.conv3(inner) + self.downsample(map_nchw))


def stage(depth: int, num_inputs: int, num_outputs: int) -> nn.Sequential:
    """timm's `RegStage` of this module's blocks."""
    blocks = nn.Sequential()
    for number in range(depth):
        block = Bottleneck(num_outputs if number else num_inputs, num_outputs)
        blocks.add_module(f"b{number + 1}", block)
    return blocks


def adaptive_pooling(map_nchw: Tensor, side: int) -> Tensor:
    """torch's `adaptive_avg_pool2d`, as products: a device adds its gradients in no fixed order."""
    for axis in (2, 3):
        size = map_nchw.shape[axis]
        places = torch.arange(size, device=map_nchw.device)
        bins = torch.arange(side, device=map_nchw.device)[:, None]
        is_inside = (places >= bins * size // side) & (places < -(-(bins + 1) * size // side))
        weights = is_inside / is_inside.sum(1, keepdim=True)
        map_nchw = (map_nchw.transpose(axis, 3) @ weights.T.to(map_nchw.dtype)).transpose(axis, 3)
    return map_nchw


class Connector(nn.Module):
    """Learned positions, blocks, pooling to `num_queries` tokens, blocks, two linears."""

    def __init__(self, settings, sizes):
        super().__init__()
        hidden = settings.hidden_size
        self.side = round(settings.num_queries**0.5)
        self.positions = nn.Parameter(torch.empty(sizes.num_patches, sizes.channels))
        self.before = stage(settings.depth, sizes.channels, hidden)
        self.after = stage(settings.depth, hidden, hidden)
        self.readout = nn.Sequential(
            nn.Linear(hidden, sizes.hidden_size),
            nn.SiLU(),
            nn.Linear(sizes.hidden_size, sizes.hidden_size),
        )

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        side = round(patches_npc.shape[1] ** 0.5)
        map_nchw = (patches_npc + self.positions).transpose(1, 2).unflatten(2, (side, side))
        pooled_nchw = self.after(adaptive_pooling(self.before(map_nchw), self.side))
        return self.readout(pooled_nchw.flatten(2).transpose(1, 2))
