"""Scores of answers by the published metrics. One file each; pure functions of texts."""
