"""One conversion of small random models, from Hugging Face and back, shared by a module's tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import small_folders

from nvlm.config import RunConfig


@dataclass(frozen=True)
class Converted:
    config: RunConfig
    vision: Path
    language: Path
    checkpoint: Path
    export: Path


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    from nvlm.convert import convert_from_hf, convert_to_hf

    folder = tmp_path_factory.mktemp("converted")
    config = small_folders.convert_config()
    vision, language = folder / "vision", folder / "language"
    small_folders.make_vision_folder(vision, config)
    small_folders.make_language_folder(language, config)
    checkpoint = convert_from_hf(vision, language, config, folder / "checkpoint")
    # Small shards, so that there are several.
    export = convert_to_hf(checkpoint, folder / "export", shard_size="2MB")
    return Converted(config, vision, language, checkpoint, export)
