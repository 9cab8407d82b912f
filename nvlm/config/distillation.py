"""`train.distill`: what a trained model teaches another one."""

from __future__ import annotations

from nvlm.config.section import Section
from nvlm.config.values import PathText, Positive


class DistillConfig(Section):
    """A teacher whose distribution over the next token is learned beside the token itself:
    LLaVA-KD (arXiv 2410.16236), LLAVADI (arXiv 2407.19409). docs/training.md."""

    teacher: PathText
    """Checkpoint or run folder of the teacher: the same tokenizer, tiles and tokens per tile, any
    size. It stays as it is."""
    weight: Positive = 1.0
    """Factor on the divergence, which is added to the loss."""
    temperature: Positive = 1.0
    """Both distributions are of logits divided by it; the divergence is multiplied by its
    square."""
