"""The page on runs: it has the numbers of the run's files, also of runs that go on or are old."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from helpers.page_tree import Element, parse_page
from helpers.shard_writing import draw_image, make_sample, write_shard
from helpers.small_runs import stage_config
from helpers.spawn import metrics, run_or_fail
from PIL import Image

from nvlm.config import load_config, save_config
from nvlm.train.events import write_event
from nvlm.views.report.page import read_runs, write_report
from nvlm.views.report.run_record import ReportError, read_run
from nvlm.views.report.settings import differences

HOSTILE = "</script><img src=x onerror=alert(1)> & \"x\" 'y' \x1b[2J\u202e"


def page_of(*folders: Path) -> Element:
    out = folders[0].parent / "pages" / "report.html"
    write_report(read_runs(folders), out)
    return parse_page(out.read_text(encoding="utf-8"))


def chart(page: Element, title: str) -> dict[str, tuple[list[int], list[float]]]:
    """Name of a line -> the steps and values that pointing at it shows."""
    (figure,) = [f for f in page.with_class("chart") if f.with_tag("b")[0].text == title]
    data = json.loads(figure.with_tag("script")[0].text)
    names = {
        int(output.attributes["data-line"]): entry.attributes["title"]
        for entry in figure.with_tag("li")
        for output in entry.with_tag("output")
    }
    paths = [path.attributes["d"] for path in figure.with_tag("path")]
    for steps, values, path in zip(data["steps"], data["values"], paths, strict=True):
        assert len(steps) == len(values) == len(path.replace("M", "L").split("L")) - 1
    return {name: (data["steps"][n], data["values"][n]) for n, name in names.items()}


def write_run(folder: Path, records: list[dict], *settings: str) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = load_config("configs/run/tiny/sft.yaml", [f"run.dir={folder}", *settings])
    save_config(config, folder / "config.yaml")
    return folder


def steps_of(*losses: float, **more: float) -> list[dict]:
    return [{"step": step, "loss": loss, **more} for step, loss in enumerate(losses, start=1)]


@pytest.mark.parallel
def test_a_real_run(demo_data: Path, tmp_path: Path):
    config = stage_config("sft", demo_data, tmp_path, "random", "train.steps=4")
    folder = Path(config.run.dir)
    folder.mkdir()
    save_config(config, tmp_path / "run.yaml")
    validation = ["validation.every=2", "validation.samples=2"]
    log = tmp_path / "log"
    run_or_fail(1, "train", str(tmp_path / "run.yaml"), *validation, log=log)
    run_or_fail(1, "report", str(folder), log=log)
    assert f"written to {folder / 'report.html'}" in log.read_text()
    text = (folder / "report.html").read_text(encoding="utf-8")
    page, records = parse_page(text), metrics(folder)
    assert "http" not in text.replace("http-equiv", "")

    def expected(key: str) -> tuple[list[int], list[float]]:
        with_key = [record for record in records if key in record]
        values = [float(f"{record[key]:.6g}") for record in with_key]
        return [record["step"] for record in with_key], values

    loss = chart(page, "Loss")
    assert loss["each step"] == expected("loss")
    assert loss["held-out"][0] == [2, 4] and all(value > 0 for value in loss["held-out"][1])
    assert chart(page, "Learning rate")["learning rate"] == expected("lr")
    assert chart(page, "Gradient norm")["each step"] == expected("grad_norm")
    assert chart(page, "Speed")["each step"] == expected("tokens_per_second")
    for source in ("digits", "text"):
        steps, _ = expected(f"loss/{source}")
        assert steps and chart(page, source)["held-out"][0] == [2, 4]
    (strip, *_) = page.with_class("strip")
    shares = [float(part.attributes["style"].split("width:")[1][:-1]) for part in strip.children
              if isinstance(part, Element)]  # fmt: skip
    assert sum(shares) == pytest.approx(100, abs=0.01)
    names = [row.text for row in page.with_tag("tr")]
    assert any("forward and backward" in name for name in names)
    assert any("validation" in name for name in names)
    assert "4 of 4" in text


def test_a_run_that_goes_on(tmp_path: Path):
    """Its last line is half written, and so is another file's."""
    folder = write_run(tmp_path / "run", steps_of(3.0, 2.0))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (folder / "between_steps.jsonl").write_text('{"step": 2, "validation/loss": 2.5}\n{"st')
    record = read_run(folder)
    assert not record.notes
    page = page_of(folder)
    assert chart(page, "Loss") == {"training": ([1, 2], [3.0, 2.0]), "held-out": ([2], [2.5])}


def test_damaged_and_old_files(tmp_path: Path):
    """Of an older version: no times, no events, no settings; of a damaged disk: what is left."""
    folder = write_run(tmp_path / "run", steps_of(3.0, 2.0))
    lines = b'\xff\xfe\n[1]\n{"step": "x", "loss": 1}\n{"step": 4, "loss": NaN, "lr": 1e999}\n'
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(lines + b'{"step": 2, "loss": 1.5}\n{"step": 5, "loss": 1.0, "grad_norm": []}\n')
    (folder / "config.yaml").write_text("a: [")
    odd = {"time": "x", "step": "y", "kind": 7, "text": None, "fields": []}
    (folder / "events.jsonl").write_text('{"kind": 7}\nnothing\n' + json.dumps(odd))
    record = read_run(folder)
    assert any("metrics.jsonl: 2 lines are no records" in note for note in record.notes)
    assert any("settings are not known" in note for note in record.notes)
    page = page_of(folder)
    assert chart(page, "Loss")["each step"] == ([1, 2, 5], [3.0, 1.5, 1.0])
    assert "have no times" in page.text


def test_several_runs(tmp_path: Path):
    more = {"lr": 1e-3, "loss/digits": 1.0}
    first = write_run(tmp_path / "first", steps_of(3.0, 2.0, **more), "run.name=same")
    second = write_run(
        tmp_path / "second",
        steps_of(4.0, 3.0, 2.0, **more),
        "run.name=same",
        "train.optimizer.lr=0.5",
    )
    page = page_of(first, second)
    labels = [f"same ({folder})" for folder in (first, second)]
    loss = chart(page, "Loss")
    assert loss[f"{labels[0]}: training"] == ([1, 2], [3.0, 2.0])
    assert loss[f"{labels[1]}: training"][0] == [1, 2, 3]
    assert set(chart(page, "Learning rate")) == set(labels)
    (table,) = [t for t in page.with_tag("table") if "train.optimizer.lr" in t.text]
    rows = [[cell.text for cell in row.with_tag("td")] for row in table.with_tag("tr")]
    assert rows == [[], ["train.optimizer.lr", "0.001", "0.5"]]


def test_settings_that_changed_on_the_way(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps_of(3.0, 2.0), "train.steps=20")
    earlier = load_config("configs/run/tiny/sft.yaml", [f"run.dir={folder}", "train.steps=10"])
    save_config(earlier, folder / "config.step_00000007.yaml")
    page = page_of(folder)
    (table,) = [t for t in page.with_tag("table") if "train.steps" in t.text]
    assert [h.text for h in table.with_tag("th")] == ["setting", "config.step_00000007.yaml", "now"]
    assert [cell.text for cell in table.with_tag("td")] == ["train.steps", "10", "20"]


def test_differences_of_settings():
    ours = {"a": {"b": "1", "c": {}}, "run": {"dir": "x"}}
    theirs = {"a": {"b": "2", "d": None}, "run": {"dir": "y"}}
    assert differences([ours, theirs]) == [
        ("a.b", ["1", "2"]),
        ("a.c", ["{}", "–"]),
        ("a.d", ["–", "null"]),
    ]


def skipped_row(shard: str, key: str, reason: str, source: str = "s") -> str:
    row = {"step": 1, "source": source, "shard": shard, "key": key, "reason": reason}
    return json.dumps({**row, "detail": HOSTILE}) + "\n"


def test_samples_and_answers_and_events(tmp_path: Path):
    """Pictures are those of the shards, also of a cut file; whatever a sample says is only text."""
    whole = draw_image(40, 30, seed=1)
    cut = draw_image(400, 300, seed=2)[:2000]
    gray = io.BytesIO()
    Image.new("L", (50, 20)).save(gray, "PNG")
    samples = [
        make_sample("a", HOSTILE, "x", [whole]),
        make_sample("b", "?", "x", [cut]),
        make_sample("gray", "?", "x", [gray.getvalue()]),
    ]
    data = tmp_path / "data"
    write_shard(data / "train" / "s" / "0.tar", samples)
    write_shard(tmp_path / "elsewhere" / "0.tar", samples)
    records = steps_of(
        3.0,
        2.0,
        **{"repaired/s/rotated": 2, "repaired/s/converted_to_rgb": 1, f"loss/{HOSTILE}": 1.0},
    )
    folder = write_run(tmp_path / "run", records, f"data.root={data}", "data.blend=null")
    (folder / "skipped.jsonl").write_text(
        skipped_row("0.tar", "a", "text")
        + skipped_row("0.tar", "b", "image")
        + skipped_row("0.tar", "c", "image")
        + skipped_row("../../../elsewhere/0.tar", "a", "outside")
        + skipped_row("0.tar", HOSTILE, HOSTILE, source=HOSTILE)
    )
    rows = [
        {"step": step, "source": "s", "sample_id": "a", "task": HOSTILE, "question": HOSTILE,
         "truth": ["7"], "answer": HOSTILE if step < 9 else "7", "correct": step == 9}
        for step in range(10)
    ]  # fmt: skip
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_event(folder, "spike", 2, HOSTILE)
    write_event(folder, "save", 2, "saved")
    page = page_of(folder)

    assert [s.attributes for s in page.with_tag("img") if s.attributes["src"] == "x"] == []
    cards = {card.with_tag("h4")[0].text: card for card in page.with_class("sample")}
    assert len(cards) == 6 and "2 left out" in cards["s: image"].text
    pictures = {name: card.with_tag("img") for name, card in cards.items()}
    assert [size_of(picture) for picture in pictures["s: text"]] == [(40, 30)]
    assert [size_of(picture) for picture in pictures["s: image"]] == [(240, 180)]
    assert not pictures["s: outside"]
    assert "EXIF rotation is applied" in cards["s: rotated"].text  # and none is rotated here
    assert not pictures["s: rotated"] and "4 repaired" in cards["s: rotated"].text
    assert [size_of(picture) for picture in pictures["s: converted_to_rgb"]] == [(50, 20)]
    assert "0.tar gray" in cards["s: converted_to_rgb"].text
    shown = HOSTILE.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    assert shown in cards["s: text"].text and f"{shown}: {shown}" in cards
    (question,) = page.with_class("question")
    steps = [int(step.text) for step in question.with_tag("dt")]
    assert steps[0] == 0 and steps[-1] == 9 and len(steps) == 8
    assert question.with_class("good")[0].text == "✓ 7" and "8 of 10 answers" in question.text
    events = [row.text for row in page.with_tag("tr") if "spike" in row.text]
    assert len(events) == 1 and shown in events[0]
    (loss, *_) = page.with_class("chart")
    assert len(loss.with_class("mark")) == 1
    assert chart(page, shown)


def size_of(picture: Element) -> tuple[int, int]:
    data = base64.b64decode(picture.attributes["src"].partition("base64,")[2])
    return Image.open(io.BytesIO(data)).size


def test_what_is_no_run(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    cases = {"file": "is a file", "empty": "has no metrics.jsonl", "begun": "no step yet"}
    for name, expected in {**cases, "nowhere": "is not there"}.items():
        with pytest.raises(ReportError, match=expected):
            read_runs([tmp_path / name])
    run = write_run(tmp_path / "run", steps_of(1.0))
    with pytest.raises(ReportError, match="is given 2 times"):
        read_runs([run, tmp_path / "empty" / ".." / "run"])
