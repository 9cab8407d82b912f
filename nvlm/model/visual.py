"""From tiles to the decoder's visual tokens: the encoder's and the connector's part of the model.

Shape suffixes: n tiles, p patches and q tokens of a tile, h language hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from nvlm.batch import MicroBatch
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.model.connectors.table import all_connectors
from nvlm.model.parts.device_time import DeviceTime
from nvlm.model.parts.names import is_frozen
from nvlm.parallel.context import gather_images
from nvlm.parallel.groups import Parallel

# Tiles that go through a frozen encoder at once: 16,400 patches, which fill a device, and of
# InternViT-6B in bf16 about 1 GB of activations, for as long as a layer takes.
MAX_TILES_PER_CALL = 16


class Visual:
    """What one part of the model does with tiles.

    No module: `vision_model` and `vision_projection` of the model, which freeze patterns name, are
    the two that it calls.
    """

    def __init__(
        self,
        config: RunConfig,
        parallel: Parallel,
        encoder: nn.Module | None,
        connector: nn.Module | None,
    ):
        """`encoder`, `connector`: None where this part of the model has none."""
        vision, self._model = config.model.vision, config.model
        self.image_size = vision.image_size
        self.feature_shape = (vision.num_patches, vision.feature_size)
        self._encoder, self._connector = encoder, connector
        self._parallel, self._shares_tiles = parallel, config.parallel.shares_tiles
        self._dtype = DTYPES[config.train.precision].torch
        self._encoder_time = DeviceTime()

    def project(self, features: Tensor) -> Tensor:
        """What the encoder gives, [n, p, channels] -> language-model embeddings [n, q, h].

        Where k earlier encoder layers have connectors of their own [n, q, (1 + k) h], theirs
        behind the last one's.
        """
        assert self._connector is not None
        connectors = all_connectors(self._connector, self._model)
        if len(connectors) == 1:
            return self._connector(features)
        # The last layer's is the first connector's.
        *others, last = features.chunk(len(connectors), dim=-1)
        pairs = zip(connectors, [last, *others], strict=True)
        return torch.cat([connector(level) for connector, level in pairs], dim=-1)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """tiles [n, 3, size, size] uint8 -> language-model embeddings [n, q, h]."""
        return self.project(self._features(tiles))

    @torch.no_grad()
    def encode(self, tiles: Tensor) -> Tensor:
        """tiles [n, 3, size, size] uint8 -> what the connector reads of them, [n, p, channels]."""
        encoder = self._encoder
        assert encoder is not None and (is_frozen(encoder) or not encoder.training)
        features = torch.empty(
            len(tiles), *self.feature_shape, dtype=self._dtype, device=tiles.device
        )
        calls = zip(
            tiles.split(MAX_TILES_PER_CALL), features.split(MAX_TILES_PER_CALL), strict=True
        )
        for some, place in calls if len(tiles) else []:
            place.copy_(self._features(some))
        return features

    def embeddings(self, micro_batch: MicroBatch, like: Tensor) -> Tensor:
        """[n, q, h]; with context parallelism the tokens [n, h] of this rank's part of the row."""
        features, part = micro_batch.features, micro_batch.part
        if part is not None and not part.num_tiles[self._parallel.context_rank]:
            # No other waits for it in vain, and its parameters get their zeros.
            visual = self.blank_tile(like)
        elif features is None:
            assert not self._shares_tiles, "tiles are encoded before the schedule"
            visual = self.encode_tiles(micro_batch.tiles)
        else:
            visual = self.project(features)
        return visual if part is None else gather_images(visual, part, self._parallel.groups.cp)

    def blank_tile(self, like: Tensor) -> Tensor:
        """What a tile of zeros becomes, [1, q, h]; through the encoder only where that trains."""
        assert self._encoder is not None
        if not is_frozen(self._encoder):
            size = self.image_size
            return self.encode_tiles(like.new_zeros((1, 3, size, size), dtype=torch.uint8))
        return self.project(like.new_zeros((1, *self.feature_shape)))

    def take_encoder_seconds(self) -> float:
        """What passes through the encoder took since this was asked last, without backward passes.

        The host has to have waited for something behind them.
        """
        return self._encoder_time.take_seconds()

    def _features(self, tiles: Tensor) -> Tensor:
        encoder = self._encoder
        assert encoder is not None
        with self._encoder_time.counted() if encoder.training else nullcontext():
            return encoder(tiles)
