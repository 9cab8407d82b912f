"""What the entry point `lmms_eval.models` names; lmms-eval calls it whenever it starts."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Where lmms-eval finds the model `nvlm`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore

    return ModelManifest("nvlm", chat_class_path="nvlm.plugins.lmms_eval.NVLM")
