"""Learned tile tags (`stage.tile_tags: soft`): their row in the table of parameters of a run.

They are beside the connector and, as adapters, the run's and not the model's: a stage before that
has text tags or none, has none of them.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.rows import Normal, Parameter
from nvlm.sizes.parameters import PROJECTOR

# What their module is called within the projector.
TILE_TAGS = "tile_tags"
KEY = f"{PROJECTOR}.{TILE_TAGS}.weight"


def tile_tag_rows(config: RunConfig) -> list[Parameter]:
    """One vector for each token of each tag: of the thumbnail, then of tiles 1, 2, and so on."""
    if not config.stage.has_soft_tags:
        return []
    language, num_tags = config.model.language, config.stage.max_num_tiles + 1
    num_vectors = num_tags * config.stage.num_soft_tag_tokens
    return [Parameter(KEY, (num_vectors, language.hidden_size), Normal(language.init_std))]
