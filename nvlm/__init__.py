"""Training, conversion and evaluation of NVLM-D-style multimodal LLMs on Megatron-core."""

__version__ = "0.1.0"
