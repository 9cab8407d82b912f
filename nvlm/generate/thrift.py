"""How much of a prompt is kept while its answer is made. This file imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from nvlm.errors import DataError


@dataclass(frozen=True)
class Thrift:
    """Answers for less memory and time, of a model that was not trained for it. Default: none.

    Raises:
        DataError: a share that means nothing; which one.
    """

    # Of each tile's tokens: the others are merged into them before the language model reads any
    # (`nvlm.model.connectors.merging`).
    visual_tokens: float = 1.0
    # Of each prompt's cached keys and values: the others are merged into them, in every layer,
    # once the prompt was read (`nvlm.model.parts.eviction`).
    cache: float = 1.0

    def __post_init__(self) -> None:
        for part in fields(self):
            share, name = getattr(self, part.name), part.name.replace("_", " ")
            is_number = isinstance(share, int | float) and not isinstance(share, bool)
            if not (is_number and math.isfinite(share) and 0 < share <= 1):
                raise DataError(
                    f"the share of {name} to keep is {share!r}; it has to be above 0 and at most "
                    "1 (all)"
                )

    def num_tokens_per_tile(self, num_tokens: int) -> int:
        """Of the `num_tokens` that a tile has, those that the language model reads: at least 1."""
        return max(1, round(num_tokens * self.visual_tokens))

    def num_cached(self, num_tokens: int) -> int:
        """Of a prompt's `num_tokens`, as many as have a key and a value in the cache: at least 1.

        The same in all layers and heads.
        """
        return max(1, round(num_tokens * self.cache))

    def as_fields(self) -> dict[str, Any]:
        """What to note beside answers; nothing by default, as before there was any choice."""
        shares = {f"keep_{part.name}": getattr(self, part.name) for part in fields(self)}
        return {name: share for name, share in shares.items() if share != 1}
