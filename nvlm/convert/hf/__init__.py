"""Hugging Face folders: their tensors, and whether their configuration describes our model."""
