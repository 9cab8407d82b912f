"""Between Hugging Face folders and Megatron-core checkpoints."""

from nvlm.convert.from_hf import convert_from_hf, convert_from_nvlm
from nvlm.convert.to_hf import convert_to_hf

__all__ = ["convert_from_hf", "convert_from_nvlm", "convert_to_hf"]
