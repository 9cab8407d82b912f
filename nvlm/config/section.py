"""What every section of a configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Keys with their types; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
