"""The demo's page from made-up results: all of it there, nothing from outside, all escaped."""

import io
import math
import random
import re
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser

import pytest
from PIL import Image, ImageDraw

from demo.report import (
    Check,
    GalleryItem,
    Report,
    StageResult,
    StepRecord,
    write_report,
)
from demo.shown_picture import Picture
from nvlm.evaluate.score import TaskScore

TASKS = ["charts", "digits", "multi_image", "ocr", "photos", "sheets", "text"]


def _png(width: int, height: int, text: str, colour="white") -> bytes:
    image = Image.new("RGB", (width, height), colour)
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, width - 5, height - 5), outline="#333333", width=2)
    draw.text((width / 2, height / 2), text, fill="#222222", anchor="mm", font_size=height / 4)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _photograph() -> bytes:
    """Many colours, so that it is stored as JPEG."""
    image = Image.effect_noise((700, 470), 60).convert("RGB")
    image.paste((40, 110, 190), (100, 60, 400, 330), Image.effect_noise((300, 270), 90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _sheet() -> bytes:
    rng = random.Random(5)
    image = Image.new("RGB", (336, 224), "white")
    draw = ImageDraw.Draw(image)
    for row in range(2):
        for column in range(3):
            draw.text(
                (56 + 112 * column, 56 + 112 * row),
                str(rng.randrange(10)),
                fill="black",
                anchor="mm",
                font_size=80,
            )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _stage(name: str, description: str, start: float, end: float, num_steps: int, share: float):
    rng = random.Random(name)
    losses = [
        end + (start - end) * math.exp(-6 * step / num_steps) * rng.uniform(0.8, 1.2)
        for step in range(num_steps)
    ]
    scores = [
        TaskScore(task, 40, round(40 * share) - number, "7", 5 + number)
        for number, task in enumerate(TASKS)
    ]
    return StageResult(name, description, list(range(1, num_steps + 1)), losses, scores)


def _item(task: str, number: int, pictures: list[Picture], **changes) -> GalleryItem:
    values = {
        "sample_id": f"{task}-{number:06d}",
        "source": task,
        "task": task,
        "earlier_turns": [],
        "question": "Which digit is in row 2, column 3?",
        "truth": ["8"],
        "answers": [("pretrain", "3"), ("SFT", "8" if number % 3 else "6")],
        "export_agrees": True,
        "pictures": pictures,
        "num_tokens_per_tile": 16,
        "image_token": "<|vision_pad|>",
    }
    return GalleryItem(**(values | changes))


def example_report() -> Report:
    one = Picture(_png(112, 112, "7"), 1, 1, ["<tile_global_thumbnail>"])
    sheet_tags = [f"<tile_{k}>" for k in range(1, 7)] + ["<tile_global_thumbnail>"]
    sheet = Picture(_sheet(), 3, 2, sheet_tags, True)
    wide = Picture(
        _png(560, 112, "EXIT  GATE", "#fff7e0"),
        5,
        1,
        [f"<tile_{k}>" for k in range(1, 6)] + ["<tile_global_thumbnail>"],
        True,
    )
    photo = Picture(_photograph(), 3, 2, sheet_tags, True)
    gallery = []
    for number in range(5):
        gallery += [
            _item("digits", number, [one], question="What digit is this?"),
            _item("sheets", number, [sheet]),
            _item("ocr", number, [wide], question="Transcribe the text.", truth=["exit gate"]),
            _item("photos", number, [photo], truth=["A photo of bricks."]),
            _item("multi_image", number, [one, one], question="Which digit is in the 2nd image?"),
            _item("text", number, [], question="What is 3 plus 5?"),
        ]
    gallery.append(
        _item(
            "charts",
            9,
            [one],
            earlier_turns=[("user", "Hello <b>there</b>"), ("assistant", "Hi.")],
            question="Is </article><script>alert(1)</script> escaped?",
            answers=[("pretrain", ""), ("SFT", "<tile_1> yes & no")],
            export_agrees=False,
        )
    )
    pretrain = _stage("pretrain", "projector trains; one tile, no tags", 5.1, 1.4, 200, 0.3)
    sft = _stage("SFT", "projector and language model train; tiles and tags", 1.9, 0.15, 300, 0.9)
    return Report(
        title="NVLM demo",
        subtitle="A tiny NVLM-D trained on this machine, exported, and asked held-out questions.",
        stages=[pretrain, sft],
        checks=[
            Check("digit at least 30 points over the majority answer", "+77 points", True),
            Check("vision_model.* unchanged by SFT", "38 tensors, 0 differ", True),
            Check("language_model.* unchanged by pretrain", "41 tensors, 1 differs: x", False),
        ],
        num_compared=280,
        num_agreeing=279,
        num_compared_tokens=1234,
        gallery=gallery,
        task_descriptions={"sheets": "needs the right tile"},
        goal_tasks=["digits", "sheets"],
        goal_points=30,
        steps=[
            StepRecord("Build the data", "nvlm data build-demo runs/demo/data", "logs/a.log", 12.3),
            StepRecord("Pretrain", "torchrun --nproc-per-node 2 -m nvlm train …", "b.log", 190.0),
        ],
        seconds=512.0,
    )


class _Links(HTMLParser):
    """Collects every address that a browser would open, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.addresses, self.open_tags, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "line", "polyline", "link", "input"):
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = write_report(example_report(), tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_nothing_from_outside(page):
    parser = _Links()
    parser.feed(page)
    assert parser.open_tags == []
    assert all(a.startswith(("data:image/", "#")) for a in parser.addresses)
    assert {a for a in parser.addresses if a.startswith("#")} == {
        f"#{anchor}" for anchor in re.findall(r'id="(\w+)"', page)
    }
    assert "script" not in parser.tags
    assert "url(" not in page and "@import" not in page


def test_text_from_samples_is_escaped(page):
    assert "&lt;/article&gt;&lt;script&gt;alert(1)" in page
    assert "Hello &lt;b&gt;there&lt;/b&gt;" in page
    assert "&lt;tile_1&gt; yes &amp; no" in page


HOSTILE = """</p></pre><script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\x1b"""


def _with_hostile_text(value):
    """Every text that the report holds, at any depth, continued by `HOSTILE`; empty ones stay."""
    if isinstance(value, str):
        return value and value + HOSTILE
    if isinstance(value, list | tuple):
        return type(value)(map(_with_hostile_text, value))
    if isinstance(value, dict):
        return {_with_hostile_text(key): _with_hostile_text(item) for key, item in value.items()}
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value)(**{name: _with_hostile_text(item) for name, item in held.items()})
    return value


def test_no_text_becomes_a_part_of_the_page(page, tmp_path):
    report = _with_hostile_text(example_report())
    hostile = write_report(report, tmp_path / "report.html").read_text(encoding="utf-8")
    expected, found = _Links(), _Links()
    expected.feed(page)
    found.feed(hostile)
    assert found.tags == expected.tags
    # Images begin alike; their noise is drawn anew.
    assert [a[:20] for a in found.addresses] == [a[:20] for a in expected.addresses]
    assert "49" not in re.findall(r"&gt;(\d+)", hostile), "a template was made of a text"
    assert "{{ 7 * 7 }}\\u001b" in hostile and "\x1b" not in hostile
    # All the fields are there: titles, tasks, steps, commands, ids, tags, turns, answers, truths.
    assert hostile.count("&lt;script&gt;alert(1)") > 10 * len(report.gallery)


def test_each_task_shows_its_numbers(page):
    report = example_report()
    for task in TASKS:
        assert page.count(f"<h3>{task}</h3>") == 1
    # sheets after SFT: 36 - 5 of 40 right against 10 of 40.
    row = re.search(r"<tr><td><b>sheets</b>.*?</tr>", page, re.DOTALL).group()
    assert "77.5%" in row and "25.0%" in row and "+52" in row
    assert page.index("<h3>sheets</h3>") < page.index("<h3>charts</h3>"), "goals come first"
    assert len(report.stages) == page.count("<polyline") / 2
    assert "279 of 280 equal" in page
    assert "2 of 3 checks hold" in page


def test_grid_has_a_numbered_cell_per_tile_and_the_exact_tags(page):
    card = page[page.index("<h3>sheets</h3>") :].split("</article>")[0]
    assert re.findall(r"<b>tile_(\d+)</b>", card) == list("123456")
    assert "grid-template:repeat(2,1fr)/repeat(3,1fr)" in card
    assert card.count("<figure") == 2, "the image and its thumbnail"
    text = re.sub(r"</?span[^>]*>", "", card[card.index('class="tags mono">') + 18 :]).split("</p>")
    pads = "[16 × &lt;|vision_pad|&gt;]"
    tags = [f"&lt;tile_{k}&gt;" for k in range(1, 7)] + ["&lt;tile_global_thumbnail&gt;"]
    assert text[0] == f"&lt;Image&gt;{''.join(tag + pads for tag in tags)}&lt;/Image&gt;"


def test_right_and_wrong_answers_are_marked(page):
    section = page[page.index("<h3>digits</h3>") : page.index("<h3>sheets</h3>")]
    assert section.count('<article class="card good">') == 3
    assert section.count('<article class="card bad">') == 2
    assert "(empty)" in page
