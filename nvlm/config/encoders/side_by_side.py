"""Several encoders that read the same tile, features joined along channels, as SPHINX mixes them
(arXiv 2311.07575)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from nvlm.config.encoders.settings import EncoderPart
from nvlm.config.section import Section
from nvlm.config.section_kinds import section_of_kinds
from nvlm.rows import Parameter

# Of each that may stand beside another; the first is the default.
KINDS = {"internvit": "InternViTConfig", "timm": "TimmConfig"}

if TYPE_CHECKING:
    OneEncoder = EncoderPart
else:
    OneEncoder = section_of_kinds("nvlm.config.encoders", KINDS)


class SideBySideConfig(Section):
    """Two encoders or more that read the same tile. Of each patch the connector reads the channels
    of all of them, in their order. docs/encoders.md."""

    kind: Literal["side_by_side"] = "side_by_side"
    """Which encoder."""
    encoders: tuple[OneEncoder, ...] = Field(min_length=1)
    """Each a section of kind `internvit` or `timm`, as above. Tiles have the first one's
    `image_size`; one of another size gets them resized. All must make as many patches. Parameters
    are named `vision_model.encoders.0.*` and so on."""

    @property
    def image_size(self) -> int:
        return self.encoders[0].image_size

    @property
    def feature_size(self) -> int:
        return sum(encoder.feature_size for encoder in self.encoders)

    @property
    def num_patches(self) -> int:
        return self.encoders[0].num_patches

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """None here: each encoder normalises with its own."""
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    @property
    def parts(self) -> Mapping[str, EncoderPart]:
        return {f"encoders.{number}": one for number, one in enumerate(self.encoders)}

    def problems(self) -> Iterator[str]:
        if len(self.encoders) == 1:
            kind = self.encoders[0].kind
            yield (
                "model.vision.encoders has one section, and side by side are two or more: say it "
                f"without encoders, as model.vision of kind {kind}"
            )
        of_parts = [
            problem.replace("model.vision.", f"model.vision.{key}.")
            for key, one in self.parts.items()
            for problem in one.problems()
        ]
        yield from of_parts
        if not of_parts:
            yield from self._unequal_patches()

    def _unequal_patches(self) -> Iterator[str]:
        first = self.encoders[0]
        side = isqrt(first.num_patches)
        for number, one in enumerate(self.encoders[1:], 1):
            if one.num_patches != first.num_patches:
                own = isqrt(one.num_patches)
                yield (
                    f"model.vision.encoders.{number} makes {own} x {own} patches of a tile "
                    f"(image_size {one.image_size} / {one.patch_size}), model.vision.encoders.0 "
                    f"{side} x {side} ({first.image_size} / {first.patch_size}): features are laid "
                    "side by side patch by patch; image_size "
                    f"{side * one.patch_size} for model.vision.encoders.{number} fits, or "
                    f"{own * first.patch_size} for model.vision.encoders.0"
                )

    def split_sizes(self) -> dict[str, int]:
        return {
            f"{key}.{name}": size
            for key, one in self.parts.items()
            for name, size in one.split_sizes().items()
        }

    def parameters(self) -> Iterator[Parameter]:
        for key, one in self.parts.items():
            for row in one.parameters():
                yield replace(row, key=f"{key}.{row.key}")

    def module_settings(self) -> dict[str, Any]:
        return {"inputs": [[one.image_size, *one.pixel_statistics] for one in self.encoders]}
