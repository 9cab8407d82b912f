"""Files copied as they are into every Hugging Face export.

They import torch, transformers, Pillow and numpy only, and each other by relative imports, because
`trust_remote_code` runs them where this package is not installed.
"""
