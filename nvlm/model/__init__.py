"""The model, of Megatron-core's parts. They are imported behind the platform, chosen here."""

from nvlm import platform

platform.current()
