"""Distillation: what a step adds to its loss, what is refused, and that it goes on as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import distilled_steps, layout_steps, small_model, spawn
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.distilled_steps import STUDENTS, TEACHERS
from helpers.small_runs import stage_config
from helpers.spawn import metrics
from torch.nn import functional

from nvlm.batch import StepBatch
from nvlm.errors import CheckpointError, ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS
from nvlm.plan.refuse import check_fit
from nvlm.plan.stage_bytes import stage_bytes
from nvlm.plan.work import largest_work
from nvlm.train.step import run_schedule, train_step
from nvlm.train.teacher import Teacher, find_teacher, stored_teacher

LAYOUTS = {"TP2 + SP": ["parallel.tensor=2", "parallel.sequence=true"]}
LONG_LAYOUTS = {"TP2": ["parallel.tensor=2"], "DP2": []}
# Losses of the others are of the same divergence, on one process above.
CASES = [
    pytest.param("NVLM-D", LAYOUTS, id="NVLM-D"),
    pytest.param("NVLM-D", LONG_LAYOUTS, id="NVLM-D, more layouts", marks=pytest.mark.slow),
    *(
        pytest.param(kind, LAYOUTS | LONG_LAYOUTS, id=kind, marks=pytest.mark.slow)
        for kind in STUDENTS
        if kind != "NVLM-D"
    ),
]


@pytest.fixture(scope="module")
def folder(parallel, tmp_path_factory) -> Path:
    """With a teacher's checkpoint."""
    folder = tmp_path_factory.mktemp("distilled")
    distilled_steps.write_teacher(folder, parallel)
    return folder


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_step_is_of_the_loss_and_the_divergence(kind, parallel, tmp_path, measure):
    """Against torch's own losses of both models' logits, sent through the same schedule."""
    from nvlm.model.parts.names import named_parameters

    distilled_steps.write_teacher(tmp_path, parallel, *TEACHERS.get(kind, []))
    config = distilled_steps.config_of(tmp_path, "one step", *STUDENTS[kind])
    run = distilled_steps.DistilledSteps(config, parallel)
    training, teacher = run.training, run.training.teacher
    assert isinstance(teacher, Teacher)
    micro_batches = distilled_steps.micro_batches_of(config)
    num_trained = sum(int(batch.loss_mask().sum()) for batch in micro_batches)
    sums = {"own": 0.0, "apart": 0.0}

    def forward(iterator, chunk):
        _, micro_batch = next(iterator)
        with torch.no_grad():
            wanted = teacher._model(micro_batch, return_logits=True)[0]

        def loss(logits):
            mask = micro_batch.loss_mask()[0]
            own = functional.cross_entropy(
                logits[0], micro_batch.labels[0].clamp(min=0), reduction="none"
            )
            # The teacher's last 64 rows are no tokens.
            target = (wanted[:, :1024] / 2).softmax(-1)
            apart = 4 * functional.kl_div(
                (logits[0] / 2).log_softmax(-1), target, reduction="none"
            ).sum(-1)
            own, apart = (own * mask).sum(), (apart * mask).sum()
            sums["own"] += float(own)
            sums["apart"] += float(apart)
            return own + 0.7 * apart, mask.sum().int(), []

        return chunk(micro_batch, return_logits=True), loss

    for chunk in training.chunks:
        chunk.zero_grad_buffer()
    run_schedule(forward, training.chunks, micro_batches)
    trained = [(n, p) for n, p in named_parameters(run.training.chunks) if p.requires_grad]
    expected = {name: p.main_grad.clone() for name, p in trained}
    assert any("lora" in name for name in expected) == (kind == "adapters")
    # A step that changes no weight leaves its gradients.
    result = train_step(
        training.chunks, training.optimizer, StepBatch(micro_batches, [], {}), parallel, 1,
        lambda *_: False, teacher,
    )  # fmt: skip
    assert result.loss == pytest.approx(sums["own"] / num_trained, rel=1e-5)
    assert result.distillation_loss == pytest.approx(sums["apart"] / num_trained, rel=1e-5)
    # Of adapters A has none as long as B is zero.
    worst = max(
        float((p.main_grad - expected[name]).norm() / expected[name].norm())
        for name, p in trained
        if expected[name].any()
    )
    measure(
        f"gradients of a distilled step, {kind}", "torch's cross entropy and kl_div", worst, 1e-4
    )
    assert not any(p.requires_grad for p in teacher._model.parameters())


def test_plans_have_the_teachers_memory(parallel, folder):
    """Its weights as they are built, and the logits of both by hand."""
    config = distilled_steps.config_of(folder, "planned")
    checkpoint = find_teacher(config)
    assert checkpoint is not None
    teacher = Teacher(config, parallel, checkpoint)
    held = sum(p.numel() * p.element_size() for p in teacher._model.parameters())
    settings = config, 0, 1, largest_work(config), assumptions_for(CARDS["h100-80gb"])
    alone, taught = stage_bytes(*settings), stage_bytes(*settings, teacher=stored_teacher(config))
    assert taught.teacher == taught.kept - alone.kept == held > 0
    num_tokens = config.train.micro_batch_size * config.stage.sequence_length
    # 1088 rows of the teacher; 1024 of what the divergence makes of both.
    assert taught.logits - alone.logits == num_tokens * (1088 + 3 * 1024) * 4
    assert taught.peak > alone.peak + held
    memory = alone.peak + held // 2
    check_fit(config, 1, memory)
    with pytest.raises(ConfigError, match="the teacher's weights"):
        check_fit(config, 1, memory, stored_teacher(config))


@pytest.mark.parallel
@pytest.mark.parametrize(("kind", "layouts"), CASES)
def test_layouts_and_resumed_steps_are_those_of_one_process(
    kind, layouts, parallel, tmp_path, measure
):
    folder = tmp_path
    distilled_steps.write_teacher(folder, parallel, *TEACHERS.get(kind, []))
    config = distilled_steps.config_of(folder, distilled_steps.SINGLE, *STUDENTS[kind])
    truth = layout_steps.two_steps(config, parallel, True, distilled_steps.DistilledSteps)
    expected = layout_steps.assemble([truth])
    program = (distilled_steps.__file__, folder, json.dumps(layouts), kind)
    spawn.run_program_or_fail(2, *program, log=folder / "log")
    for layout in layouts:
        ranks = [
            torch.load(folder / f"{layout} rank{rank}.pt", weights_only=False) for rank in range(2)
        ]
        for case in (layout_steps.STEPS, layout_steps.RESUMED):
            results = [rank[case] for rank in ranks]
            found = layout_steps.assemble(results)
            worst = layout_steps.worst_change(found, expected)
            what = f"change of weights in distilled steps, {kind}, {layout}, {case}"
            measure(what, "one process", worst, 1e-4)
            for step, losses in results[0]["losses"].items():
                torch.testing.assert_close(losses, truth["losses"][step], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["parallel.pipeline=2"], "train.distill does not go with parallel.pipeline 2"),
        (["parallel.context=2"], "train.distill does not go with parallel.context 2"),
        (
            ["parallel.vision=tile_parallel", "stage.freeze=[vision_model.*]"],
            "train.distill does not go with parallel.vision tile_parallel",
        ),
    ],
)
def test_layouts_without_the_whole_teacher_are_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        small_model.small_config(f"train.distill={{teacher: {tmp_path}}}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.connector.pixel_shuffle=4"], "tokens of a tile is 16 there and 4 in this run"),
        (["model.image_token=<|im_end|>"], "model.image_token is <.vision_pad.> there"),
        (["model.deepstack=tiles"], "model.deepstack tiles is False there and True in this run"),
        (["parallel.tensor=3"], "train.distill.teacher .*parallel.tensor 3 does not divide"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(folder, tmp_path, overrides, said):
    from nvlm.config.changed import changed_section

    config = distilled_steps.config_of(folder, "refused")
    pairs = dict(override.split("=") for override in overrides)
    values = {key: int(value) if value.isdigit() else value for key, value in pairs.items()}
    with pytest.raises((CheckpointError, ConfigError), match=said):
        find_teacher(changed_section(config, values))
    missing = changed_section(config, {"train.distill.teacher": str(tmp_path / "nothing")})
    with pytest.raises(CheckpointError, match="nothing"):
        find_teacher(missing)


def test_a_run_goes_on_with_its_teacher_and_no_other(parallel, demo_data, tmp_path):
    from nvlm.train.fit import fit
    from nvlm.train.start import prepare

    distilled_steps.write_teacher(tmp_path, parallel)
    more = [
        f"train.distill={{teacher: {tmp_path / 'teacher'}}}", "train.steps=3", "checkpoint.every=2",
        "checkpoint.background=false",
    ]  # fmt: skip
    config = stage_config("sft", demo_data, tmp_path / "runs", "random", *more)
    fit(config, parallel, prepare(config))
    run, again = Path(config.run.dir), tmp_path / "runs" / "again"
    records = metrics(run)
    assert all(record["distillation_loss"] > 0 for record in records)
    shutil.copytree(run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "step_00000003")
    (again / "checkpoints" / "latest").unlink(missing_ok=True)
    resumed = stage_config("sft", demo_data, tmp_path / "runs", "random", *more, f"run.dir={again}")
    fit(resumed, parallel, prepare(resumed))
    for key in ("loss", "distillation_loss", "grad_norm"):
        assert [record[key] for record in metrics(again)] == [record[key] for record in records]
    last = checkpoint_tensors(run / "checkpoints" / "step_00000003")
    found = checkpoint_tensors(again / "checkpoints" / "step_00000003")
    assert last.keys() == found.keys()
    assert all(torch.equal(last[key], found[key]) for key in last)
    shutil.rmtree(tmp_path / "teacher")
    distilled_steps.write_teacher(tmp_path, parallel, "model.language.init_std=0.5")
    with pytest.raises(CheckpointError, match="its teacher was another than"):
        find_teacher(resumed, again / "checkpoints" / "step_00000003")
