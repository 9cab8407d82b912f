"""What the report says follows from the files of the run: goals, agreement, frozen tensors."""

import io
import shlex

import pytest
from helpers import small_model
from helpers.generate_case import make_checkpoint
from helpers.paths import REPOSITORY
from PIL import Image
from typer.testing import CliRunner

from demo import commands
from demo.report import StageResult
from demo.results import NUM_SHOWN_PER_TASK, StageOutcome, build_report, print_accuracy
from nvlm.cli import app
from nvlm.config import load_config
from nvlm.data.shards.shard import ByteRange
from nvlm.errors import NvlmError
from nvlm.evaluate.questions import Question
from nvlm.evaluate.score import Truth, score_tasks
from nvlm.files import read_json_lines
from nvlm.parallel.groups import initialize, shut_down
from nvlm.printing import new_console

CONFIGS = REPOSITORY / "configs/run/tiny"


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[Question]:
    """Their images lie in files of their own."""
    folder = tmp_path_factory.mktemp("images")
    questions = []
    for number in range(20):
        # Half of each task's truths are "1": the majority answer is right in half of the cases.
        truth = str(1 if number < 10 else number)
        for task, image in (("digits", _png(112, 112)), ("search", _png(336, 224))):
            turns = [{"role": "user", "content": "<image>\nWhich digit?"}]
            file = folder / f"{task}-{number}.png"
            file.write_bytes(image)
            place = ByteRange(0, len(image))
            questions.append(
                Question(
                    f"{task[:-1]}-{number}",
                    task,
                    task,
                    turns,
                    Truth([truth]),
                    6,
                    str(file),
                    [place],
                )
            )
    return questions


def _answers(questions, num_right: int) -> list[dict]:
    return [
        {
            "sample_id": question.sample_id,
            "source": question.source,
            "task": question.task,
            "truth": question.truth.answers,
            "answer": question.truth.answers[0] if position // 2 >= 20 - num_right else "wrong",
            "prompt_token_ids": [1, 2, 3],
            "answer_token_ids": [4, position],
        }
        for position, question in enumerate(questions)
    ]


def _frozen(**changes) -> dict:
    comparison = {
        "patterns": ["vision_model.*"],
        "frozen": ["vision_model.a", "vision_model.b"],
        "changed_though_frozen": [],
        "trained": ["vision_projection.a"],
        "unchanged_though_trained": [],
    }
    return comparison | changes


def _report(questions, num_right=18, export_answers=None, frozen=None):
    metrics = [{"step": step, "loss": 1 / step} for step in range(1, 6)]
    answers = _answers(questions, num_right)
    outcomes = [
        StageOutcome(
            "pretrain", load_config(CONFIGS / "pretrain.yaml"), metrics, _answers(questions, 2)
        ),
        StageOutcome("SFT", load_config(CONFIGS / "sft.yaml"), metrics, answers),
    ]
    return build_report(
        questions, outcomes, export_answers or answers, frozen or [_frozen(), _frozen()], []
    )


def test_all_promises_kept(questions):
    report = _report(questions)
    assert [check.holds for check in report.checks] == [True] * 5
    # 18 of 20 right against 10 of 20 with the answer "1".
    assert "90.0% against 50.0%: +40.0 points" in report.checks[0].found
    assert (report.num_agreeing, report.num_compared) == (40, 40)


def test_a_missed_goal_fails(questions):
    report = _report(questions, num_right=15)  # +25 points
    assert [check.holds for check in report.checks] == [False, False, True, True, True]


def test_one_different_token_fails(questions):
    export_answers = _answers(questions, 18)
    export_answers[7]["answer_token_ids"][1] += 1
    report = _report(questions, export_answers=export_answers)
    assert [check.holds for check in report.checks] == [True, True, False, True, True]
    assert "39 of 40 samples" in report.checks[2].found
    assert "search/searc-3" in report.checks[2].found
    disagreeing = [item.sample_id for item in report.gallery if not item.export_agrees]
    assert disagreeing == ["searc-3"]


@pytest.mark.parametrize(
    "changes",
    [
        {"changed_though_frozen": ["vision_model.b"]},
        {"frozen": []},  # nothing was compared
        {"unchanged_though_trained": ["vision_projection.a"]},  # nothing was trained
    ],
)
def test_a_changed_frozen_tensor_fails(changes, questions):
    report = _report(questions, frozen=[_frozen(), _frozen(**changes)])
    assert [check.holds for check in report.checks] == [True, True, True, True, False]


def test_gallery_shows_the_tiles_of_the_last_stage(questions):
    report = _report(questions)
    sheets = [item for item in report.gallery if item.task == "search"]
    assert [item.sample_id for item in sheets] == [f"searc-{n}" for n in range(NUM_SHOWN_PER_TASK)]
    (picture,) = sheets[0].pictures
    assert (picture.columns, picture.rows, picture.has_thumbnail) == (3, 2, True)
    assert picture.tags == [f"<tile_{k}>" for k in range(1, 7)] + ["<tile_global_thumbnail>"]
    digit = next(item for item in report.gallery if item.task == "digits")
    assert digit.pictures[0].tags == ["<tile_global_thumbnail>"]
    assert not digit.pictures[0].has_thumbnail
    assert digit.question == "Which digit?"
    assert digit.answers == [("pretrain", "wrong"), ("SFT", "wrong")]


def test_a_goal_without_samples_is_an_error(questions):
    questions = [question for question in questions if question.task == "search"]
    outcome = StageOutcome(
        "SFT",
        load_config(CONFIGS / "sft.yaml"),
        [{"step": 1, "loss": 1.0}],
        _answers(questions, 10),
    )
    with pytest.raises(NvlmError, match="no held-out sample has the task 'digits', found search"):
        build_report(questions, [outcome], outcome.answers, [_frozen()], [])


def test_the_table_is_that_of_the_command_above_it(demo_data, tmp_path, monkeypatch, capsys):
    """`nvlm evaluate` prints the same lines when it is run as the demo shows it."""
    monkeypatch.setenv("COLUMNS", "100")
    paths = commands.Paths(tmp_path / "demo")
    paths.data.parent.mkdir()
    paths.data.symlink_to(demo_data)
    _, sft = commands.load_stages(paths, small_model.SIZES)
    config = small_model.small_config("model.language.init_std=0.2")
    make_checkpoint(config, initialize(config, world_size=1), sft.run_dir)
    shut_down()
    step = commands.evaluate(sft, paths, limit_per_task=1, num_questions=0)
    words = step.shown_command.split(" -m nvlm ")[1]
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 0, result.output
    rows = list(read_json_lines(paths.answers(sft.name)))
    stage = StageResult("SFT", "", [], [], score_tasks(rows))
    capsys.readouterr()
    print_accuracy(new_console(soft_wrap=True), [stage], [step])
    title, command, *table = capsys.readouterr().out.strip().splitlines()
    assert (title, command.strip()) == ("Held-out accuracy after SFT", step.shown_command)
    assert len(table) == 1 + len({row["task"] for row in rows}) > 5
    assert "\n".join(table) in result.stdout
