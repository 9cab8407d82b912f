"""`stage.alignment`: how well a sample's image and text agree, as a learned vector."""

from __future__ import annotations

from typing import Literal

from nvlm.config.section import Section
from nvlm.config.values import Count


class AlignmentConfig(Section):
    """Levels of alignment (AlignGPT, arXiv 2405.14129): a vector for each, which stands at the
    beginning of a document whose first question, or whose beginning, has an image.
    docs/switches.md."""

    levels_from: Literal["samples", "gate"]
    """`samples`: each sample brings its level, its field `alignment_level`, as in pretraining.
    `gate`: the highest level's vector and a mixture of the others, which a gate chooses by images
    and question, as in SFT."""
    num_levels: Count = 8
    """Levels, the highest among them: of samples from 0 on. At least 2."""
