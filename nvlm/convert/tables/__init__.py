"""Rules per architecture: Hugging Face's names of its tensors, and how they are laid out."""
