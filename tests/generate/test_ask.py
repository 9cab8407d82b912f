"""`nvlm generate` with a folder or a file of questions, from images to rows."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import generate_case, small_model, spawn
from helpers.shard_writing import draw_image
from PIL import Image
from typer.testing import CliRunner

from nvlm import cli
from nvlm.cli import app, generate
from nvlm.cli.generate import _show as show
from nvlm.errors import DataError
from nvlm.generate.answer import answer
from nvlm.generate.ask import ask_all
from nvlm.generate.asked_files import AskedTogether, asked_of_file, asked_of_folder
from nvlm.generate.request import Sampling
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down

SHORT = Sampling(6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = small_model.small_config("model.language.init_std=0.2")
    target = tmp_path_factory.mktemp("ask") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(draw_image(60, 60)[:-100])
    turned = Image.Exif()
    turned[274] = 6
    Image.open(folder / "0.png").save(folder / "turned.jpg", exif=turned)
    return folder


def write_questions(pictures: Path, path: Path) -> Path:
    lines = [
        {"prompt": "What is it?", "images": [os.path.relpath(pictures / "1.png", path.parent)]},
        {"id": "none", "prompt": "Hello", "max_new_tokens": 2},
        "{",
        {"id": "gone", "prompt": "What?", "images": ["gone.png"]},
        {"id": "long", "prompt": "7 " * 40_000},
        {"prompt": "The same?", "images": [str(pictures / f"{n}.png") for n in (2, 3)]},
    ]
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(checkpoint: Path, together: AskedTogether, out: Path, sampling: Sampling = SHORT) -> None:
    ask_all(checkpoint, together, out, None, sampling)


def test_a_folder(checkpoint, pictures, tmp_path, capsys):
    """Each answer is what the image alone gets; a damaged image is an error."""
    out = tmp_path / "out.jsonl"
    ask(checkpoint, asked_of_folder(pictures, "What?", None, SHORT), out)
    printed = capsys.readouterr().out
    names = [*(f"{n}.png" for n in range(5)), "broken.png", "turned.jpg"]
    assert [row["id"] for row in rows(out)] == names
    for row in rows(out):
        assert (row["images"], row["prompt"]) == ([row["id"]], "What?")
        if row["id"] == "broken.png":
            assert row.keys() == {"id", "images", "prompt", "error"}
            assert row["error"]["reason"] == "image"
            assert row["error"]["detail"].startswith(str(pictures / "broken.png"))
            continue
        assert row["answer"] == answer(checkpoint, "What?", [pictures / row["id"]], SHORT)
        assert row["finish_reason"] in ("stop", "length")
        assert row["num_tokens"] == len(row["answer_token_ids"]) <= 6
        assert row["num_prompt_tokens"] > 30
        assert row.get("repaired") == ({"rotated": 1} if row["id"] == "turned.jpg" else None)
    assert "asking 7 questions" in printed
    assert "not answered: broken.png: image: " in printed
    assert "repaired as in training: rotated 1" in printed
    assert f"6 answers, 1 with an error (image 1): {out}" in printed
    # Again: nothing is left to do.
    before = out.stat()
    ask(checkpoint, asked_of_folder(pictures, "What?", None, SHORT), out)
    printed = capsys.readouterr().out
    assert f"{out} is complete: it has a row for each of 7 questions" in printed
    assert f"6 answers, 1 with an error (image 1): {out}" in printed
    assert "asked again once that row is removed" in printed
    assert out.stat() == before


def test_lines(checkpoint, pictures, tmp_path):
    path = write_questions(pictures, tmp_path / "questions.jsonl")
    out = tmp_path / "out.jsonl"
    ask(checkpoint, asked_of_file(path, None, SHORT), out)
    first, none, bad, gone, long, two = rows(out)
    assert first["id"] == 1 and 1 <= first["num_tokens"] <= 6
    assert none["sampling"] == {"max_new_tokens": 2} and none["num_tokens"] <= 2
    assert (bad["id"], bad["error"]["reason"]) == (3, "json")
    assert (gone["error"]["reason"], gone["id"]) == ("missing_image", "gone")
    assert long["error"]["reason"] == "too_long"
    assert two["images"] == [str(pictures / "2.png"), str(pictures / "3.png")]
    assert two["answer"] == answer(
        checkpoint, "The same?", [pictures / "2.png", pictures / "3.png"], SHORT
    )


def test_it_goes_on_where_it_was_ended(checkpoint, pictures, tmp_path, capsys):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    together = asked_of_folder(pictures, "What?", None, SHORT)
    ask(checkpoint, together, whole)
    ask(checkpoint, AskedTogether(together.asked[2:4]), out)
    with out.open("a") as file:
        file.write('{"id": "0.png", "ans')
    capsys.readouterr()
    ask(checkpoint, together, out)
    printed = capsys.readouterr().out
    assert "its last row was cut short, and is dropped" in printed
    assert "has rows of 2 of 7 questions: going on with the others" in printed
    assert out.read_bytes() == whole.read_bytes()
    # Ended between the last row and the order.
    lines = whole.read_text().splitlines(keepends=True)
    out.write_text("".join(reversed(lines)))
    ask(checkpoint, together, out)
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(DataError, match="made with max_new_tokens 6, now 5"):
        ask(checkpoint, together, out, Sampling(5))
    with pytest.raises(DataError, match=r"had another prompt: 'What\?', now 'Why"):
        ask(checkpoint, asked_of_folder(pictures, "Why?", None, SHORT), out)
    assert out.read_bytes() == whole.read_bytes()


def test_an_export_answers_alike(checkpoint, pictures, tmp_path):
    export, out = tmp_path / "export", tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["convert", "to-hf", str(checkpoint), str(export)])
    assert result.exit_code == 0, result.output
    together = asked_of_folder(pictures, "What?", None, SHORT)
    ask(checkpoint, together, tmp_path / "expected.jsonl")
    ask(export, together, out)
    assert out.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    with pytest.raises(DataError, match=f"made with checkpoint {export}, now {checkpoint}"):
        ask(checkpoint, together, out)


def test_nothing_that_can_be_asked(checkpoint, tmp_path):
    path, out = tmp_path / "questions.jsonl", tmp_path / "out.jsonl"
    path.write_text("{\n")
    said = f"--questions {path}: of 1 question none can be asked; the first is 1: json"
    with pytest.raises(DataError, match=re.escape(said)):
        ask(checkpoint, asked_of_file(path, None, SHORT), out)
    assert not out.exists()
    path.write_text('{"prompt": "What?", "images": ["gone.png"]}\n')
    for _ in range(2):  # the second time its row is there
        with pytest.raises(DataError, match=f"could be asked; {out} says why of each"):
            ask(checkpoint, asked_of_file(path, None, SHORT), out)
    assert rows(out)[0]["error"]["reason"] == "missing_image"


def test_the_command_line(checkpoint, pictures, tmp_path):
    path, out = write_questions(pictures, tmp_path / "questions.jsonl"), tmp_path / "out.jsonl"
    options = ["--questions", str(path), "--out", str(out), "--max-new-tokens", "6"]
    result = CliRunner().invoke(app, ["generate", str(checkpoint), *options])
    assert result.exit_code == 0, result.output
    assert "3 answers, 3 with an error (json 1, missing_image 1, too_long 1)" in result.output
    assert "3 of 6 done" not in result.output and "6 of 6 done" in result.output
    expected = tmp_path / "expected.jsonl"
    ask(checkpoint, asked_of_file(path, None, SHORT), expected)
    assert out.read_bytes() == expected.read_bytes()


def test_a_terminal_sees_the_answer_come(checkpoint, pictures, tmp_path, monkeypatch):
    """Piece by piece, with a line's end behind the last one; a pipe gets the same in one."""
    image, prompt = str(pictures / "1.png"), "What is it?"
    words = ["--image", image, "--prompt", prompt, "--max-new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", ["nvlm", "generate", str(checkpoint), *words])
    terminal, end = pty.openpty()
    pieces: list[str] = []
    monkeypatch.setattr(generate, "_show", lambda text: (pieces.append(text), show(text)))
    for stream in (os.fdopen(end, "w"), (tmp_path / "pipe").open("w")):
        with stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert cli.run_app() == 0
    shown = os.read(terminal, 1 << 16).decode().replace("\r\n", "\n")
    os.close(terminal)
    assert shown == (tmp_path / "pipe").read_text()
    assert len(pieces) > 1 and "".join(pieces) + "\n" == shown


@pytest.mark.slow
@pytest.mark.parallel
def test_replicas_share_the_questions_over_a_kill(checkpoint, pictures, tmp_path):
    """After a kill the next start goes on; the rows are those of one process."""
    path = tmp_path / "questions.jsonl"
    lines = [
        {"id": n, "prompt": f"What is {n}?", "images": [str(pictures / f"{n % 5}.png")]}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "out.jsonl"
    ask(checkpoint, asked_of_file(path, None, Sampling(8)), expected)
    options = ["--questions", str(path), "--out", str(out), "--max-new-tokens", "8"]
    command = ["-m", "nvlm", "generate", str(checkpoint), *options, "--tensor", "1"]
    part = tmp_path / "out.jsonl.part-1"
    job = spawn.start_warm(2, *command, log=tmp_path / "log")
    deadline = time.monotonic() + 120
    # Found before there is a row: all 40 take no longer than that does on a busy machine.
    ranks: list[psutil.Process] = []
    while not any(file.exists() and file.stat().st_size for file in (out, part)):
        assert time.monotonic() < deadline and job.poll() is None, (tmp_path / "log").read_text()
        ranks = psutil.Process(job.pid).children(recursive=True)
        time.sleep(0.01)
    for process in ranks:
        process.kill()
    spawn.kill(job)
    log = tmp_path / "log-of-the-end"
    spawn.run_program_or_fail(2, *command, log=log)
    assert out.read_bytes() == expected.read_bytes()
    assert "going on with the others" in log.read_text()
    assert not part.exists()
    # At another layout: of a replica's processes the first has the questions.
    out.write_text("".join(expected.read_text().splitlines(keepends=True)[::2]))
    spawn.run_program_or_fail(2, *command[:-1], "2", log=tmp_path / "log-at-tensor2")
    assert out.read_bytes() == expected.read_bytes()


def test_answers_go_on_with_the_same_shares_only(checkpoint, tmp_path):
    for number in range(2):
        Image.new("RGB", (60, 90), (number * 99, 0, 9)).save(tmp_path / f"{number}.png")
    together, out = asked_of_folder(tmp_path, "What?", None, SHORT), tmp_path / "out.jsonl"
    ask_all(checkpoint, together, out, None, SHORT, thrift=Thrift(0.5, 0.5))
    written = out.read_text()
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["keep_visual_tokens"] == settings["keep_cache"] == 0.5
    for thrift, said in (
        (None, "keep_visual_tokens 0.5, now None; keep_cache 0.5, now None"),
        (Thrift(0.5, 0.25), "keep_cache 0.5, now 0.25"),
    ):
        with pytest.raises(DataError, match=said):
            ask_all(checkpoint, together, out, None, SHORT, thrift=thrift)
    ask_all(checkpoint, together, out, None, SHORT, thrift=Thrift(0.5, 0.5))
    assert out.read_text() == written
