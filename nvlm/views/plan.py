"""`nvlm plan`: memory, operations, time and messages of a run, as tables or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nvlm.config import RunConfig
from nvlm.errors import CheckpointError, ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import Plan, StagePlan, make_plan
from nvlm.plan.hardware import Card
from nvlm.plan.kernels import kernels_on
from nvlm.plan.search import changes_of, search
from nvlm.plan.work import Work, largest_work, stated_work
from nvlm.printing import new_console, say
from nvlm.tables import print_table

_GB = 1e9
_NUM_RANKED = 12
# Names of `Plan.losses` in words.
_LOSSES = {
    "useful": "needed operations at the card's peak: MFU",
    "products_below_peak": "products run below the peak",
    "elementwise": "norms, activations, sums: bound by memory",
    "recomputed": "activations computed again",
    "tensor_messages": "waiting for tensor-parallel sums",
    "launches": "waiting for the host",
    "pipeline_bubble": "filling and draining the pipeline",
    "pipeline_messages": "messages between stages",
    "uneven_stages": "stages of unequal time",
    "feature_messages": "tile features on their way to the first stage",
    "uneven_data": "data ranks of unequal work",
    "data_messages": "gradients and parameters between data ranks",
    "optimizer": "the optimizer's update",
}


def work_of(config: RunConfig, num_tiles: float | None, num_tokens: float | None) -> Work:
    """What the run's sequences hold: of its index, and what `--tiles` and `--tokens` say.

    Raises:
        ConfigError: they are more than a sequence holds.
        DataError: the data are indexed but cannot be opened any more.
    """
    base = None
    if num_tiles is None or num_tokens is None:
        base = _indexed(config)
    return stated_work(config, base or largest_work(config), num_tiles, num_tokens)


def _indexed(config: RunConfig) -> Work | None:
    # What reads indexes loads torch: not where there are none.
    if not Path(config.data.index_dir or Path(config.run.dir) / "index").is_dir():
        return None
    from nvlm.data.order.contents import contents

    return contents(config)


def _teacher(config: RunConfig) -> RunConfig | None:
    """What `train.distill` names, where it is on this machine; else that it is not counted."""
    if config.train.distill is None:
        return None
    from nvlm.train.teacher import stored_teacher  # loads torch

    try:
        return stored_teacher(config)
    except CheckpointError as error:
        say(f"the teacher's memory is not counted: {error}", sys.stderr)
        return None


def print_plan(
    config: RunConfig,
    num_gpus: int,
    card: Card,
    overrides: dict[str, float],
    work: Work,
    as_json: bool,
) -> None:
    """Print the plan of a run on so many GPUs.

    Raises:
        ConfigError: the layout or the batch does not fit them, or an override is wrong.
    """
    assumptions = assumptions_for(card, overrides, kernels_on(config, card))
    plan = make_plan(config, num_gpus, assumptions, work, _teacher(config))
    if as_json:
        say(json.dumps(plan_as_json(plan, card), indent=2))
        return
    console = new_console(highlight=False)
    _print_summary(console, plan, card)
    _print_memory(console, plan)
    _print_seconds(console, plan)
    _print_losses(console, plan)
    _print_messages(console, plan)
    _print_assumptions(console, plan)


def print_search(
    config: RunConfig,
    num_gpus: int,
    card: Card,
    overrides: dict[str, float],
    work: Work,
    as_json: bool,
) -> None:
    """Print the fastest layouts that fit, and how to have the first.

    Raises:
        ConfigError: no layout is legal, none fits, or an override is wrong.
    """
    assumptions = assumptions_for(card, overrides, kernels_on(config, card))
    found = search(config, num_gpus, assumptions, work, _teacher(config))
    if not found.plans:
        raise ConfigError(
            f"--search: none of {found.num_legal} layouts fits {num_gpus} x {card.name}: the "
            f"smallest takes {_size(found.least_bytes)} of {_size(assumptions['memory_bytes'])}; "
            "take more GPUs or a larger card"
        )
    if as_json:
        ranked = [
            {**plan_as_json(plan, card), "overrides": changes_of(plan, config)}
            for plan in found.plans
        ]
        say(json.dumps(ranked, indent=2))
        return
    console = new_console(highlight=False)
    _print_ranking(console, found.plans)
    console.print(
        f"{found.num_fitting} of {found.num_legal} layouts fit {num_gpus:,} x {card.name}, with as "
        "few recomputed layers as that takes; times are the plan's, with its assumptions (`nvlm "
        f"plan` without --search). Work: {work.source}.",
        markup=False,
    )
    changes = " ".join(changes_of(found.plans[0], config)) or "as configured"
    console.print(f"The first: {changes}", markup=False, soft_wrap=True)


def _print_ranking(console: Console, plans: list[Plan]) -> None:
    headings = [
        "rank",
        "tensor",
        "con-\ntext",
        "pipe-\nline",
        "chunks",
        "data",
        "micro-\nbatch",
        "layers",
    ]
    headings += ["tiles", "recom-\nputed", "GB", "s/step", "MFU"]
    rows = []
    for rank, plan in enumerate(plans[:_NUM_RANKED], start=1):
        parallel, train = plan.config.parallel, plan.config.train
        recompute = train.recompute.language
        recomputed = "all" if recompute.granularity == "full" else recompute.granularity
        if recompute.num_layers is not None:
            recomputed = str(recompute.num_layers)
        rows.append(
            [
                *map(str, (rank, parallel.tensor, parallel.context, parallel.pipeline)),
                str(parallel.virtual_pipeline),
                *map(str, (plan.data_size, train.micro_batch_size, parallel.layout)),
                "shared" if parallel.shares_tiles else "stage 0",
                recomputed,
                f"{plan.peak_bytes / _GB:.1f}",
                f"{plan.step_seconds:.3g}",
                f"{plan.mfu:.1%}",
            ]
        )
    print_table(console, "the fastest layouts", headings, rows)


def plan_as_json(plan: Plan, card: Card) -> dict:
    """Every number of a plan: bytes, seconds and shares, unless a name says otherwise."""
    config, parallel = plan.config, plan.config.parallel
    return {
        "fits": plan.fits,
        "peak_bytes": plan.peak_bytes,
        "memory_bytes": round(plan.assumptions["memory_bytes"]),
        "step_seconds": plan.step_seconds,
        "samples_per_second": plan.samples_per_second,
        "sequences_per_second": plan.sequences_per_second,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "hours": plan.hours,
        "gpu_hours": plan.hours * plan.num_gpus,
        "run": config.run.name,
        "gpu": card.name,
        "gpus": plan.num_gpus,
        "layout": {**parallel.model_dump(), "data": plan.data_size},
        "micro_batches": plan.num_micro_batches,
        "work": {**asdict(plan.work), "imbalance": plan.work.imbalance_of(plan.data_size)},
        "flops_per_step": asdict(plan.flops),
        "stages": [_stage_as_json(stage) for stage in plan.stages],
        "losses": plan.losses,
        "messages": {name: asdict(messages) for name, messages in plan.messages.items()},
        "checkpoint": {
            "weights_bytes": plan.checkpoint.weights,
            "optimizer_bytes": plan.checkpoint.optimizer,
            "kept": plan.num_checkpoints,
            "staged_bytes": plan.staged_bytes,
        },
        "assumptions": [asdict(assumption) for assumption in plan.assumptions.all],
    }


def _stage_as_json(stage: StagePlan) -> dict:
    return {
        "decoder_layers": stage.layers,
        "bytes": {
            **asdict(stage.bytes),
            "at_step": stage.bytes.at_step,
            "at_checkpoint": stage.bytes.at_checkpoint,
        },
        "forward_seconds": asdict(stage.forward),
        "backward_seconds": asdict(stage.backward),
        "recomputed_seconds": stage.recomputed.total,
        "visual_seconds": stage.visual,
        "head_seconds": stage.head,
        "idle": stage.idle,
    }


def _print_summary(console: Console, plan: Plan, card: Card) -> None:
    config, parallel = plan.config, plan.config.parallel
    rates = f"{plan.samples_per_second:,.3g} samples/s"
    if config.stage.packing:
        rates = f"{plan.sequences_per_second:,.3g} packs/s, {rates}"
    context = f"context {parallel.context} x " if parallel.context > 1 else ""
    chunks = f" ({parallel.virtual_pipeline} chunks)" if parallel.virtual_pipeline > 1 else ""
    lines = [
        f"{config.run.name} on {plan.num_gpus:,} x {card.name}: tensor {parallel.tensor}"
        f"{' + sequence' if parallel.sequence else ''} x {context}pipeline {parallel.pipeline}"
        f"{chunks} x data {plan.data_size}, {plan.num_micro_batches:,} micro-batches of "
        f"{config.train.micro_batch_size} a step",
        f"work: {plan.work.num_tiles:.3g} tiles (at most {plan.work.most_tiles}) and "
        f"{plan.work.num_tokens:,.0f} of {config.stage.sequence_length:,} tokens in a sequence: "
        f"{plan.work.source}",
        _fit_line(plan),
        f"{plan.step_seconds:.3g} s a step: {rates}, {plan.tokens_per_second:,.0f} tokens/s",
        f"MFU {plan.mfu:.1%}: {plan.flops.total:.3g} operations a step, of them encoder "
        f"{plan.flops.encoder / plan.flops.total:.1%}, projector "
        f"{plan.flops.projector / plan.flops.total:.1%}, decoder "
        f"{plan.flops.decoder / plan.flops.total:.1%}",
        f"{config.train.steps:,} steps: {plan.hours:,.3g} hours, "
        f"{plan.hours * plan.num_gpus:,.0f} GPU-hours, without checkpoints and starts",
        f"a checkpoint: {_size(plan.checkpoint.total)} ({_size(plan.checkpoint.weights)} weights, "
        f"{_size(plan.checkpoint.optimizer)} optimizer); {plan.num_checkpoints} kept: "
        f"{_size(plan.checkpoint.total * plan.num_checkpoints)}",
        f"saves in the background: {_size(plan.staged_bytes)} of host memory for each process"
        if plan.staged_bytes
        else "saves hold training up, and take no host memory",
    ]
    if config.train.precision == "fp32":
        lines.append("train.precision fp32: times are those of bf16 products, which are faster")
    for line in lines:
        console.print(line, markup=False)
    console.print()


def _fit_line(plan: Plan) -> str:
    bytes_ = [stage.bytes for stage in plan.stages]
    number = max(range(len(bytes_)), key=lambda at: bytes_[at].peak)
    when = "at a step" if bytes_[number].at_step == bytes_[number].peak else "while it resumes"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    stage = f" on stage {number}" if len(bytes_) > 1 else ""
    return (
        f"{verdict}: {_size(plan.peak_bytes)} of {_size(plan.assumptions['memory_bytes'])} "
        f"{when}{stage}"
    )


def _print_memory(console: Console, plan: Plan) -> None:
    columns = [
        ("weights", "parameters"), ("gradients", "gradients"), ("optimizer", "optimizer"),
        ("acti-\nvations", "activations"), ("tiles", "tiles"), ("logits", "logits"),
        ("buffers", "buffers"), ("over-\nhead", "overhead"), ("at a\nstep", "at_step"),
        ("at a\nload", "at_checkpoint"),
    ]  # fmt: skip
    if plan.config.train.distill is not None:
        columns.insert(1, ("teacher", "teacher"))
    rows = [
        [f"{number}: {_layers(stage.layers)}"]
        + [f"{getattr(stage.bytes, name) / _GB:.1f}" for _, name in columns]
        for number, stage in enumerate(plan.stages)
    ]
    headings = ["stage: layers", *(heading for heading, _ in columns)]
    print_table(console, "GB of a GPU (1e9 bytes)", headings, rows)


def _print_seconds(console: Console, plan: Plan) -> None:
    headings = ["stage: layers", "forward", "backward", "of it\nagain", "visual", "head"]
    headings += ["products", "atten-\ntion", "element-\nwise", "mes-\nsages", "idle"]
    rows = []
    for number, stage in enumerate(plan.stages):
        both = stage.forward + stage.backward
        times = [stage.forward.total, stage.backward.total, stage.recomputed.total]
        times += [stage.visual, stage.head, both.matmul, both.attention, both.elementwise]
        times += [both.messages]
        rows.append(
            [f"{number}: {_layers(stage.layers)}"]
            + [f"{1000 * seconds:.1f}" for seconds in times]
            + [f"{stage.idle:.0%}"]
        )
    print_table(console, "ms of a micro-batch on a GPU", headings, rows)


def _print_losses(console: Console, plan: Plan) -> None:
    rows = [
        [_LOSSES[name], f"{share * plan.step_seconds:.3f}", f"{share:.1%}"]
        for name, share in plan.losses.items()
        if abs(share) >= 0.0005 or name == "useful"
    ]
    rows.append(["a step", f"{plan.step_seconds:.3f}", "100.0%"])
    styles = ["bold", *[None] * (len(rows) - 2), "bold"]
    headings = ["where the time of the average GPU goes", "seconds", "share"]
    print_table(console, "", headings, rows, styles=styles)


def _print_messages(console: Console, plan: Plan) -> None:
    rows = [
        [name, f"{one.num_bytes / _GB:.2f}", f"{one.seconds:.3f}", f"{one.hidden:.0%}"]
        for name, one in plan.messages.items()
        if one.seconds
    ]
    if rows:
        headings = ["messages of a step, of a GPU", "GB", "seconds", "hidden"]
        print_table(console, "", headings, rows)


def _print_assumptions(console: Console, plan: Plan) -> None:
    """Under each source the numbers that come from it."""
    console.print("assumptions (--assume NAME=VALUE puts another)", style="bold")
    for source, rows in groupby(plan.assumptions.all, lambda one: one.source):
        console.print(source, style="dim", markup=False)
        for one in rows:
            text = f"{one.name} = {_value(one.value)} {one.unit}"
            console.print(Padding(Text(text), (0, 0, 0, 4), expand=False))


def _value(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.4g}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e12:.2f} TB" if num_bytes >= 1e12 else f"{num_bytes / _GB:.1f} GB"


def _layers(chunks: list[list[int]]) -> str:
    """`0-9, 40-49`."""
    return ", ".join(f"{chunk[0]}-{chunk[-1]}" if chunk else "none" for chunk in chunks)
