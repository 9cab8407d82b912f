"""The model, of Megatron-core's parts. They are imported after the platform, chosen here."""

from nvlm import platform

platform.current()
