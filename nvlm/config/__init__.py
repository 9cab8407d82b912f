"""Configuration: YAML files merged and checked by pydantic. Imports no torch."""

from nvlm.config.compose import load_config, save_config
from nvlm.config.schema import RunConfig

__all__ = ["RunConfig", "load_config", "save_config"]
