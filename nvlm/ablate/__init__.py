"""Ablations: a grid of runs in one file, and the table that answers it. docs/ablate.md."""
