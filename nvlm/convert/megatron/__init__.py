"""Megatron-core checkpoints tensor by tensor, without a model or process group."""
