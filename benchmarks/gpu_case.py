"""One model trained for some steps on this device, as JSON: a part of `scripts/gpu_check`.

    python benchmarks/gpu_case.py FILE

FILE has, as JSON: `run` (a run file), `overrides`, `documents` and `tiles` of a sequence, `steps`,
and whether to compare `features` (each on and off) and to `save` a checkpoint. Samples are random,
so that nothing is read; the model, its optimizer and the step are those of `nvlm train`.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from nvlm import platform
from nvlm.batch import IGNORED_LABEL, MicroBatch, StepBatch, check_micro_batch
from nvlm.config import load_config
from nvlm.config.changed import changed
from nvlm.config.schema import RunConfig, RunSection
from nvlm.megatron.known_warnings import ignore_known_warnings
from nvlm.model.nvlm_d import build_model_chunks
from nvlm.parallel.groups import Parallel, initialize, shut_down
from nvlm.platform import features
from nvlm.sizes.flops import forward_flops, step_flops
from nvlm.sizes.visual import VisualLayout
from nvlm.train.throughput import device_card
from nvlm.train.training import Training

_WARM_UP = 2  # steps, or passes, before those that are timed


def micro_batch(config: RunConfig, documents: list[int], num_tiles: int) -> MicroBatch:
    """Random documents that fill the sequences of a micro-batch; the tiles are the first one's."""
    size = config.train.micro_batch_size
    visual, generator = VisualLayout.from_config(config), torch.Generator().manual_seed(0)
    num_tokens = size * sum(documents)
    image_mask = torch.zeros(size, sum(documents), dtype=torch.bool)
    image_mask[:, 2 : 2 + visual.num_tokens(num_tiles, num_tiles)] = True
    image_mask = image_mask.view(1, num_tokens)
    vocabulary = config.model.language.vocab_size
    tokens, labels = (
        torch.randint(0, vocabulary, (1, num_tokens), generator=generator) for _ in range(2)
    )
    labels[image_mask] = IGNORED_LABEL
    pixels = config.model.vision.image_size
    shape = (size * num_tiles, 3, pixels, pixels)
    batch = MicroBatch(
        tokens=tokens,
        labels=labels,
        position_ids=torch.cat([torch.arange(n) for n in documents * size])[None],
        image_mask=image_mask,
        cu_seqlens=torch.tensor([0, *documents * size]).cumsum(0).to(torch.int32),
        tiles=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        num_real_tokens=num_tokens,
        num_real_token_pairs=size * sum(n * n for n in documents),
    )
    check_micro_batch(batch, visual)
    return batch.to(platform.current().device())


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def build(config: RunConfig, parallel: Parallel) -> Training:
    """With weights drawn on the device: drawing them as training does takes minutes at 72B."""
    chunks = build_model_chunks(config, parallel)
    for chunk in chunks:
        for parameter in chunk.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)
            else:
                torch.nn.init.ones_(parameter)
    return Training(config, parallel, chunks)


def seconds_of(work, repeats: int) -> float:
    """Median of `repeats`, after some that do not count."""
    times = []
    for number in range(_WARM_UP + repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        if number >= _WARM_UP:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def step_seconds(training: Training, batch: MicroBatch, repeats: int) -> float:
    config = training.config
    number = config.train.global_batch_size // config.train.micro_batch_size
    step = StepBatch([batch] * number, [], {})
    return seconds_of(lambda: training.take_step(step), repeats)


def rate(flops: int, seconds: float) -> dict[str, float]:
    card = device_card()
    found = {"seconds": seconds, "tflops_per_second": flops / seconds / 1e12}
    return {**found, **({"mfu": flops / seconds / card.peak_flops} if card else {})}


def measure(config: RunConfig, parallel: Parallel, case: dict) -> dict:
    documents, tiles, repeats = case["documents"], case["tiles"], case["steps"]
    forget_peak()
    training = build(config, parallel)
    whole, text = micro_batch(config, documents, tiles), micro_batch(config, documents, 0)
    flops, number = step_flops(config), config.train.global_batch_size
    tokens, pairs = sum(documents), sum(n * n for n in documents)
    seconds = step_seconds(training, whole, repeats)
    found = {"step": rate(number * flops.of_documents(tokens, pairs, tiles), seconds)}
    found["step"]["peak_bytes"] = platform.current().peak_memory_bytes()
    seconds = step_seconds(training, text, repeats)
    found["decoder"] = rate(number * flops.of_documents(tokens, pairs, 0), seconds)
    found["encoder"] = rate(
        whole.num_tiles * forward_flops(config.model).encoder_per_tile,
        seconds_of(lambda: encode(training, whole.tiles), repeats),
    )
    if case.get("save"):
        with tempfile.TemporaryDirectory() as folder:
            training.config = changed(config, {"run": RunSection(name="gpu_case", dir=folder)})
            training.data_state = {}
            forget_peak()
            before = held_bytes()
            started = time.perf_counter()
            training.save()
            found["save_result"] = {
                "seconds": time.perf_counter() - started,
                "held_bytes": before,
                "peak_bytes": platform.current().peak_memory_bytes(),
            }
    return found


def held_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def encode(training: Training, tiles: torch.Tensor) -> None:
    encoder = training.chunks[0].module.vision_model
    assert encoder is not None
    with torch.no_grad():
        encoder(tiles)


def compare_features(config: RunConfig, parallel: Parallel, case: dict) -> dict:
    """Seconds of a step with each feature that is on, and without it."""
    machine = platform.current().machine()
    layers = platform.current().resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    all_rules, found = features.RULES, {}
    batch = micro_batch(config, case["documents"], case["tiles"])
    for name in all_rules:
        reason = all_rules[name](features.Situation(config, machine, layers))
        if reason:
            found[name] = {"off": reason}
            continue
        times = {}
        for state in ("with", "without"):
            without = {**all_rules, name: lambda _: "left out, to compare"}
            features.RULES = all_rules if state == "with" else without
            training = build(config, parallel)
            times[state] = step_seconds(training, batch, case["steps"])
            del training
            gc.collect()
        features.RULES = all_rules
        found[name] = times | {"ratio": times["with"] / times["without"]}
    return found


def main() -> None:
    ignore_known_warnings()
    case = json.loads(Path(sys.argv[1]).read_text())
    config = load_config(case["run"], case["overrides"])
    parallel = initialize(config)
    found = measure(config, parallel, case)
    gc.collect()
    if case.get("features"):
        found["features_result"] = compare_features(config, parallel, case)
    print(json.dumps(found))
    shut_down()


if __name__ == "__main__":
    main()
