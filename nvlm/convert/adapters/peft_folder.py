"""A folder that peft saved: its settings, checked, and the tensors of each adapted module.

Whatever `LoraConfig` says (huggingface.co/docs/peft) that changes what is computed is taken as peft
takes it, or refused by name; so is a key that peft may have one day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvlm.convert.blocks import all_finite, raw_bytes
from nvlm.convert.hf.folder import ADAPTER_FILE, read_json
from nvlm.convert.hf.safetensors_file import TORCH_DTYPES, SafetensorsFile
from nvlm.errors import ConvertError

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
MAGNITUDE = ".lora_magnitude_vector"
# The exported projector, which peft saves whole where it trained whole.
PROJECTOR_MODULE = "mlp1"

# Where adapters are, which the tensors say; how they were trained; what file this is.
_WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "eva_config", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "megatron_core"),
}
_TAKEN = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
# Other ways to begin change the matrices beside which the adapters are.
_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Module:
    """The adapter of one of Hugging Face's linear layers: A [rank, inputs], B [outputs, rank]."""

    name: str
    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    alpha: float  # what is added is alpha / rank * B @ A

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class PeftFolder:
    """The modules with adapters by name, and the other tensors by theirs.

    Raises:
        ConvertError: a file is missing, not whole or not readable; the settings have something that
            nvlm does not compute, or a tensor does not fit them.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_dir():
            raise ConvertError(
                f"{path}: {'is not a folder' if path.exists() else 'no such folder'}"
            )
        self._file = path / ADAPTER_FILE
        self._settings = read_json(self._file)
        self._check_settings()
        tensors = _read_tensors(path / WEIGHTS_FILE)
        names = [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]
        self.modules = {name: self._module(name, tensors) for name in names}
        self.others = tensors

    @property
    def dropout(self) -> float:
        """That it was trained with."""
        return self._settings.get("lora_dropout") or 0.0

    def _check_settings(self) -> None:
        settings = self._settings
        if settings.get("peft_type") != "LORA":
            raise self._refusal("peft_type", "LORA is taken alone")
        if settings.get("bias", "none") != "none":
            raise self._refusal("bias", "biases beside adapters stay as they are in nvlm")
        beginning = settings.get("init_lora_weights", True)
        if not any(beginning is known or beginning == known for known in _BEGINNINGS):
            why = "the matrices beside its adapters are others than the model's"
            raise self._refusal("init_lora_weights", why)
        saved = settings.get("modules_to_save") or []
        if saved not in ([], [PROJECTOR_MODULE]):
            raise self._refusal("modules_to_save", f"beside adapters {PROJECTOR_MODULE} is taken")
        known = {*_WITHOUT_EFFECT, *_TAKEN, "bias", "init_lora_weights", "modules_to_save"}
        for key, value in settings.items():
            if key not in known and value not in (None, False, {}, []):
                raise self._refusal(key, "nvlm's adapters have nothing like it")

    def _refusal(self, key: str, why: str) -> ConvertError:
        found = repr(self._settings.get(key))[:80]
        return ConvertError(
            f"{self._file}: {key} is {found}: {why}; put the adapters into the model with peft "
            "(merge_and_unload) and convert that"
        )

    def _module(self, name: str, tensors: dict[str, Tensor]) -> Module:
        """Takes what is the module's out of `tensors`."""
        a, b = tensors.pop(name + LORA_A), tensors.pop(name + LORA_B, None)
        magnitude = tensors.pop(name + MAGNITUDE, None)
        rank = self._number("r", "rank_pattern", name)
        if b is None:
            raise ConvertError(f"{self.path / WEIGHTS_FILE}: {name}{LORA_B} is missing")
        if a.dim() != 2 or b.dim() != 2 or not len(a) == b.shape[1] == rank:
            raise ConvertError(
                f"{self.path / WEIGHTS_FILE}: {name} has A {list(a.shape)} and B {list(b.shape)}, "
                f"where {self._file.name} says rank {rank:g}"
            )
        if (magnitude is not None) != bool(self._settings.get("use_dora")):
            has = "has no" if magnitude is None else "has a"
            raise ConvertError(
                f"{self.path / WEIGHTS_FILE}: {name} {has} {MAGNITUDE[1:]}, where "
                f"{self._file.name} says use_dora {self._settings.get('use_dora')!r}"
            )
        alpha = self._number("lora_alpha", "alpha_pattern", name)
        if self._settings.get("use_rslora"):
            alpha *= rank**0.5  # peft divides by the root of the rank
        return Module(name, a, b, magnitude, alpha)

    def _number(self, key: str, pattern_key: str, module: str) -> float:
        """As peft finds it: the first pattern that the end of the module's name is, or `key`."""
        patterns = self._settings.get(pattern_key) or {}
        value = self._settings.get(key)
        for pattern in patterns if isinstance(patterns, dict) else ():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise self._refusal(pattern_key, f"{pattern!a} is no pattern: {error}") from None
            if found:
                value = patterns[pattern]
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConvertError(f"{self._file}: {key} of {module} is {value!r}, not above 0")
        return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, by name without peft's prefix."""
    if not path.exists():
        raise ConvertError(
            f"{path}: no such file: save the adapters as safetensors (peft's default)"
        )
    file = SafetensorsFile(path)
    found: dict[str, Tensor] = {}
    for name, entry in file.entries.items():
        if entry.dtype not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise ConvertError(f"{path}: {name} is {entry.dtype}; known are {known}")
        tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        file.read_into(raw_bytes(tensor), entry, 0)
        if not all_finite(tensor):
            raise ConvertError(f"{path}: {name} holds NaN or infinite values")
        found[name.removeprefix(PREFIX)] = tensor
    return found


def describe(modules: Iterable[str]) -> str:
    """The first few of some names."""
    names = sorted(modules)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
