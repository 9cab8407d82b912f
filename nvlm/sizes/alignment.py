"""Levels of alignment (`stage.alignment`): their rows in the table of parameters of a run.

They are beside the connector and, as learned tile tags, the run's and not the model's. The gate is
an MLP from the image tokens of a tile to the shares of all levels but the highest (AlignGPT,
arXiv 2405.14129, section 3.3).
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.rows import ZEROS, Normal, Parameter
from nvlm.sizes.parameters import PROJECTOR
from nvlm.sizes.tile_tags import tile_tag_rows

# What their module is called within the projector.
ALIGNMENT = "alignment"
LEVELS_KEY = f"{PROJECTOR}.{ALIGNMENT}.levels.weight"
GATE = f"{PROJECTOR}.{ALIGNMENT}.gate_"
# Channels inside the gate, as in the paper's code.
GATE_SIZE = 256


def alignment_rows(config: RunConfig) -> list[Parameter]:
    """A vector for each level, the lowest first; then those of the gate."""
    alignment, model = config.stage.alignment, config.model
    if alignment is None:
        return []
    num_levels, hidden_size = alignment.num_levels, model.language.hidden_size
    # As widely spread as the uniform numbers that the paper's code draws (Xavier).
    levels = Normal((2 / (num_levels + hidden_size)) ** 0.5)
    rows = [Parameter(LEVELS_KEY, (num_levels, hidden_size), levels)]
    if config.stage.mixes_levels:
        sizes = {"in": (GATE_SIZE, model.num_tokens_per_tile), "out": (num_levels - 1, GATE_SIZE)}
        for name, shape in sizes.items():
            spread = Normal((3 * shape[1]) ** -0.5)  # of torch's uniform numbers
            rows.append(Parameter(f"{GATE}{name}.weight", shape, spread))
            rows.append(Parameter(f"{GATE}{name}.bias", shape[:1], ZEROS))
    return rows


def stage_rows(config: RunConfig) -> list[Parameter]:
    """All that a run's stage puts beside the connector: learned tile tags, levels of alignment."""
    return [*tile_tag_rows(config), *alignment_rows(config)]
