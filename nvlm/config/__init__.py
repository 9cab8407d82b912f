"""Configuration: YAML files merged and checked by pydantic. Imports no torch."""

from nvlm.config.changed import changed
from nvlm.config.compose import load_config, load_runs, save_config
from nvlm.config.schema import RunConfig

__all__ = ["RunConfig", "changed", "load_config", "load_runs", "save_config"]
