"""Decoder layers of each pipeline stage by what parts of the model take: `parallel.layout: auto`.

A pipeline moves at the pace of its slowest stage: each further micro-batch takes as long as that
one, and what the first one takes does not depend on the cut. So the slowest stage is made as fast
as can be. Times are those of a plan on an H100 with the most tiles that a sequence may have: with
fewer the first stage waits a little, but with more than it was cut for all others would wait for
it. Nothing enters but the configuration, so that every rank finds the same.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.chunks import parts_of
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.parts import decoder_layers
from nvlm.plan.seconds import Passes, device_of
from nvlm.plan.work import largest_work
from nvlm.sizes.layout import StageLayers


def with_stage_layers(config: RunConfig) -> RunConfig:
    """`config` with numbers in the place of `parallel.layout: auto`.

    Whoever asks what a stage holds needs them: building, counting, planning.
    """
    if config.parallel.layout != "auto":
        return config
    layers = balanced_layers(config)
    flat = [count for (count,) in layers] if config.parallel.virtual_pipeline == 1 else layers
    parallel = config.parallel.model_copy(update={"layout": flat})
    return config.model_copy(update={"parallel": parallel})


def balanced_layers(config: RunConfig) -> StageLayers:
    """The layers with which the slowest stage is fastest; those of a stage about even by chunk.

    A stage's time grows with each of its layers, so that giving one after another to the stage that
    is then the fastest finds the optimum. Of equal stages the last has it: the earlier keep the
    activations of more micro-batches.
    """
    parallel, seconds = config.parallel, _ChunkSeconds(config)
    num_chunks = parallel.virtual_pipeline
    layers = [[0] * num_chunks for _ in range(parallel.pipeline)]

    def with_one_more(stage: int) -> tuple[float, int]:
        """The stage's time with one layer more, and the chunk that has it."""
        now = [seconds.of(stage, chunk, layers[stage][chunk]) for chunk in range(num_chunks)]
        more = [seconds.of(stage, chunk, layers[stage][chunk] + 1) for chunk in range(num_chunks)]
        chunk = min(range(num_chunks), key=more.__getitem__)
        return sum(now) - now[chunk] + more[chunk], chunk

    candidates = [with_one_more(stage) for stage in range(parallel.pipeline)]
    for _ in range(config.model.language.num_layers):
        stage = min(reversed(range(parallel.pipeline)), key=lambda stage: candidates[stage][0])
        layers[stage][candidates[stage][1]] += 1
        candidates[stage] = with_one_more(stage)
    return layers


def stage_seconds(config: RunConfig, layers: StageLayers) -> list[float]:
    """What each stage takes for one micro-batch, forwards and backwards."""
    seconds = _ChunkSeconds(config)
    return [
        sum(seconds.of(stage, chunk, count) for chunk, count in enumerate(chunks))
        for stage, chunks in enumerate(layers)
    ]


class _ChunkSeconds:
    """Of a chunk of a stage with so many layers, for one micro-batch, forwards and backwards."""

    def __init__(self, config: RunConfig):
        self._config, self._of_layers = config, {}
        assumptions = assumptions_for(CARDS[DEFAULT_CARD])
        device = device_of(config, assumptions)
        parts = parts_of(config, largest_work(config), device)
        self._layer = parts.layer
        self._first, self._last = _total(parts.visual + parts.embedding), _total(parts.head)

    def of(self, stage: int, chunk: int, num_layers: int) -> float:
        parallel = self._config.parallel
        if num_layers not in self._of_layers:
            passes, _ = decoder_layers(self._config, num_layers, self._layer)
            self._of_layers[num_layers] = _total(passes)
        seconds = self._of_layers[num_layers]
        if (stage, chunk) == (0, 0):
            seconds += self._first
        if (stage, chunk) == (parallel.pipeline - 1, parallel.virtual_pipeline - 1):
            seconds += self._last
        return seconds


def _total(passes: Passes) -> float:
    return passes.forward.total + passes.backward.total
