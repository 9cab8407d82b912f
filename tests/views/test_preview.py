"""The preview shows what training gets: tokens, loss mask, tiles, sequences, read off the page."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.loading import build_loader
from helpers.page_tree import Element, parse_page
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from helpers.videos import write_source
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from nvlm.batch import IGNORED_LABEL
from nvlm.cli import app
from nvlm.config import RunConfig
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.data.order.planner import Planner
from nvlm.data.samples.sample import SampleError
from nvlm.sizes.visual import TileTags, VisualLayout
from nvlm.views.pages import page_environment
from nvlm.views.preview import Preview, ShownImage, build_preview, describe, describe_cuts
from nvlm.views.preview_figures import draw_figure
from nvlm.views.preview_page import _colours, write_preview
from nvlm.views.preview_terminal import print_preview
from nvlm.views.stats import blend_stats
from nvlm.views.visible import visible

HOSTILE_QUESTION = "</span><script>alert(1)</script> <|im_end|> & 'x' \"y\""
HOSTILE_ANSWER = "日本 😀 <|im_start|>user\n\x1b[31m\u202e ok"


def show(config: RunConfig, num_samples: int, tmp_path: Path) -> tuple[Preview, Element]:
    preview = build_preview(config, num_samples)
    path = write_preview(preview, tmp_path / "pages" / "preview.html")
    assert [file.name for file in path.parent.iterdir()] == ["preview.html"]
    return preview, parse_page(path.read_text(encoding="utf-8"))


def show_image(image: ShownImage, number: int | None = None) -> Element:
    template = page_environment("nvlm.views").get_template("preview_figures.html")
    return parse_page(template.module.image_figures(draw_figure(image, number)))


def cards(page: Element) -> list[Element]:
    return page.with_class("card")


def tokens_and_mask(card: Element) -> tuple[list[int], list[bool]]:
    """Ids and whether they are trained, of every token that a card shows."""
    ids: list[int] = []
    trained: list[bool] = []
    for span in card.with_class("t"):
        match = re.fullmatch(
            r"id ([\d ]+), tokens? (\d+)( to \d+)?(, trained)?", span.attributes["data-about"]
        )
        assert match is not None
        count = int(span.attributes["data-ids"])
        own = [int(text) for text in match[1].split()]
        assert int(match[2]) == len(ids)
        ids += own * count if "image-token" in span.classes else own
        assert len(ids) == int(match[2]) + count
        assert ("on" in span.classes) == (match[4] is not None)
        trained += ["on" in span.classes] * count
    return ids, trained


@pytest.mark.parametrize("tags", ["1d", "none"])
def test_tokens_and_mask_are_those_of_training(make_config, tmp_path, tags):
    config = make_config(f"stage.tile_tags={tags}", "train.global_batch_size=2")
    loader = build_loader(config, open_indexes(config), data_rank=0, data_size=1)
    documents = []
    step = next(iter(loader))
    for batch in step.micro_batches:
        starts = batch.cu_seqlens.tolist()
        for key, start, stop in zip(batch.sample_keys, starts[:-1], starts[1:], strict=False):
            labels = batch.labels[0, start:stop].tolist()
            documents.append((key, batch.tokens[0, start:stop].tolist(), labels))
    preview, page = show(config, len(documents), tmp_path)
    assert [f"{s.source}/{s.key}" for s in preview.samples] == [key for key, _, _ in documents]
    assert len(cards(page)) == len(documents) >= 4
    for card, (_, tokens, labels) in zip(cards(page), documents, strict=True):
        shown, trained = tokens_and_mask(card)
        assert shown == tokens
        # A label stands one place before its token.
        assert trained == [False] + [label != IGNORED_LABEL for label in labels[:-1]]
        assert any(trained)
        assert not all(trained)


@pytest.mark.parametrize("fusion", ["cross_attention", "hybrid"])
def test_what_is_beside_the_row_is_said(make_config, tmp_path, fusion):
    """All tiles for NVLM-X, all but thumbnails for NVLM-H; a tag of NVLM-X sees its tile alone."""
    config = make_config(
        f"model.fusion={fusion}", "model.cross_attention.layer_interval=2", "data.blend={single: 1}"
    )
    preview, page = show(config, 12, tmp_path)
    tiled = 0
    for card, sample in zip(cards(page), preview.samples, strict=True):
        shown = [line.text for line in card.with_class("beside")]
        assert shown == sample.beside
        (image,) = sample.images
        num_tiles = len(image.tiles)
        assert len(card.with_class("image-token")) == (fusion == "hybrid")
        num_beside = num_tiles if fusion == "cross_attention" else num_tiles - 1
        if not num_beside:  # NVLM-H's one tile stands in the row
            assert not any("see" in line for line in shown)
            continue
        size = 16 * num_beside
        every = "tile 1" if num_beside == 1 else f"tiles 1 to {num_beside}"
        assert shown[0].startswith(f"beside the row, for cross-attention: {every} of {num_tiles}, ")
        assert int(shown[0].split()[-2]) >= size
        assert shown[-1].startswith("tokens ") and shown[-1].endswith(f" {every}")
        tags = [line for line in shown[1:] if re.search(r" see tile \d+$", line)]
        if num_tiles > 1:
            tiled += 1
            assert len(tags) == (num_tiles if fusion == "cross_attention" else 0)
            assert [int(line.split()[-1]) for line in tags] == list(range(1, len(tags) + 1))
    assert tiled


def test_tiles(make_config, tmp_path):
    preview, page = show(make_config(), 12, tmp_path)
    grids = set()
    for card, sample in zip(cards(page), preview.samples, strict=True):
        overlays = card.with_class("over")
        assert len(overlays) == len(sample.images)
        assert len(card.with_class("image-token")) == sample.plan.num_tiles
        for overlay, image in zip(overlays, sample.images, strict=True):
            columns, rows = image.grid
            grids.add(image.grid)
            assert f"repeat({rows},1fr)/repeat({columns},1fr)" in overlay.attributes["style"]
            tags = [cell.attributes["title"] for cell in overlay.with_tag("span")]
            assert tags == image.tags[: columns * rows]
        text = "".join(span.text for span in card.with_class("t"))
        assert all(tag in text for image in sample.images for tag in image.tags)
        pictures = [image.attributes["src"] for image in card.with_tag("img")]
        drawn_alone = [i for i in sample.images if len(i.tiles) == 1 and i.size[0] == i.size[1]]
        shown_tiles = sample.plan.num_tiles - len(drawn_alone)
        assert len(pictures) == len(sample.images) + shown_tiles
    assert (1, 1) in grids
    assert any(columns * rows >= 4 for columns, rows in grids)


@pytest.mark.parametrize(
    ("tags", "labels"),
    [
        ("none", ["1", "2", "3", "4", "5", "6"]),
        ("1d", ["01", "02", "03", "04", "05", "06"]),
        ("2d_grid", ["x00_y00", "x01_y00", "x02_y00", "x00_y01", "x01_y01", "x02_y01"]),
        ("2d_box", ["0, 0", "112, 0", "224, 0", "0, 112", "112, 112", "224, 112"]),
    ],
)
def test_tiles_are_labelled_with_their_tags(tags: TileTags, labels: list[str]):
    visual = VisualLayout(tags, True, 12, image_size=112, num_tokens_per_tile=16)
    tiles = np.zeros((7, 3, 112, 112), np.uint8)
    image = ShownImage((300, 200), (3, 2), visual.tags((3, 2)), tiles)
    assert [label.text for label in show_image(image).with_tag("b")] == labels
    captions = [caption.text for caption in show_image(image, 2).with_tag("figcaption")]
    assert captions[0] == "2: 300 × 200 pixels → 3 × 2 tiles and the thumbnail"


def test_sources_have_different_colours():
    for count in (1, 2, 8, 13, 36):
        colours = _colours([f"source {number}" for number in range(count)])
        assert len(set(colours.values())) == count


def test_picture_is_put_together_from_the_tiles(make_config, tmp_path):
    preview, page = show(make_config("data.blend={single: 1}"), 12, tmp_path)
    for card, sample in zip(cards(page), preview.samples, strict=True):
        (image,) = sample.images
        data = card.with_tag("img")[0].attributes["src"].partition(",")[2]
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        width, height = image.size
        assert picture.width / picture.height == pytest.approx(width / height, rel=0.02)
        # The stored picture, by way of tiles and JPEG.
        stored = Image.open(io.BytesIO(stored_image(sample.key))).convert("RGB")
        assert stored.size == (width, height)
        small = picture.resize((4, 4), Image.Resampling.BOX)
        wanted = stored.resize((4, 4), Image.Resampling.BOX)
        pairs = zip(small.tobytes(), wanted.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 12


def stored_image(key: str) -> bytes:
    """Of the fixture's source `single`."""
    number = int(key.rpartition("-")[2])
    sizes = [(100, 90), (300, 100), (224, 224), (640, 480), (90, 400), (480, 640)]
    return draw_image(*sizes[number % len(sizes)], seed=number)


def test_bars_are_the_planners(make_config, tmp_path):
    config = make_config()
    _, page = show(config, 5, tmp_path)
    planner = Planner(config, open_indexes(config))
    packs = [pack for _ in range(2) for pack in planner.next_step()]
    rows = page.with_class("sequence")
    assert len(rows) == len(packs) == 8
    links = []
    for row, pack in zip(rows, packs, strict=True):
        tokens, tiles = (
            [part for part in bar.all() if "title" in part.attributes]
            for bar in row.with_class("bar")
        )
        assert [int(part.attributes["data-tokens"]) for part in tokens] == [
            draw.length for draw in pack.draws
        ]
        assert sum(int(part.attributes["data-tiles"]) for part in tiles) == sum(
            draw.num_tiles for draw in pack.draws
        )
        for bar, budget, counts in (
            (tokens, 512, [draw.length for draw in pack.draws]),
            (tiles, 24, [draw.num_tiles for draw in pack.draws]),
        ):
            widths = [
                float(re.search(r"width:([\d.]+)%", part.attributes["style"])[1]) for part in bar
            ]
            assert sum(widths) == pytest.approx(100 * sum(counts) / budget, abs=0.01)
        titles = [part.attributes["title"].partition(":")[0] for part in tokens]
        assert titles == [planner.key(draw) for draw in pack.draws]
        # A part says which sample it is, if that is shown, and its source.
        shown = [part.text.rpartition(" ") for part in tokens]
        assert [source for *_, source in shown] == [title.partition("/")[0] for title in titles]
        of_row = [part.attributes["href"] for part in tokens if part.tag == "a"]
        assert of_row == [f"#sample-{number}" for number, *_ in shown if number]
        links += of_row
    assert links == [f"#sample-{number}" for number in range(1, 6)]
    assert [f"#{card.attributes['id']}" for card in cards(page)] == links


@pytest.fixture
def hostile_root(tmp_path: Path) -> Path:
    """A source with a name, keys and texts that a page or terminal could take for its own."""
    picture = draw_image(300, 200)
    samples = [
        make_sample("<i>key&", HOSTILE_QUESTION, HOSTILE_ANSWER, [picture]),
        make_sample("cut", "What?", "Nothing.", [picture[: len(picture) * 2 // 3]]),
        {"__key__": "broken", "json": b"{", "png": picture},
        {"__key__": "long", "json": as_json(("user", "Long?"), ("assistant", "long " * 3000))},
    ]
    root = tmp_path / "hostile"
    write_shard(root / "train" / "<b>&evil" / "evil-000000.tar", samples)
    return root


def test_texts_are_escaped(make_config, hostile_root, tmp_path):
    config = make_config(f"data.root={hostile_root}", "train.steps=2")
    _, page = show(config, 4, tmp_path)
    card = next(card for card in cards(page) if "<i>key&" in card.with_tag("h3")[0].text)
    assert "<b>&evil" in card.with_tag("h3")[0].text
    text = "".join(
        span.text.replace("↵", "")
        for span in card.with_class("t")
        if "image-token" not in span.classes
    )
    assert HOSTILE_QUESTION in text
    assert "日本 😀 <|im_start|>user\n\\u001b[31m\\u202e ok" in text
    # What the text spells is text; the template's own are control tokens: system, user, assistant.
    control = [span.text for span in card.with_class("control-token")]
    assert control == ["<|im_start|>", "<|im_end|>"] * 3
    # Whatever a page could load or run stands in these.
    for element in page.all():
        assert element.tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in element.attributes)
        if "src" in element.attributes:
            assert re.match("data:image/(png|jpeg);base64,", element.attributes["src"])
        assert element.attributes.get("href", "#").startswith("#")
    style = page.with_tag("style")[0].text
    assert "url(" not in style
    assert "@import" not in style


def poisoned(value: Any, given: dict[str, str], place: str = "") -> Any:
    """The same with another hostile text for every text in it; `given` gets them by their place."""
    if isinstance(value, str):
        return given.setdefault(f"{place}={value}", hostile_text(len(given)))
    if isinstance(value, SampleError):
        return SampleError(*(poisoned(v, given, "problem") for v in (value.reason, value.detail)))
    if isinstance(value, list):
        return [poisoned(item, given, place) for item in value]
    if isinstance(value, dict):
        return {poisoned(k, given, place): poisoned(v, given, place) for k, v in value.items()}
    if is_dataclass(value):
        names = [f.name for f in fields(value) if f.name not in ("config", "kind")]
        # A source is named the same wherever it stands.
        places = {n: n.removesuffix("s") if n == "sources" else n for n in names}
        return replace(value, **{n: poisoned(getattr(value, n), given, places[n]) for n in names})
    return value


def hostile_text(number: int) -> str:
    return f"</script></style><img src=x onerror=alert({number})>\"'{{{{ 7 * 7 }}}}\u202e\x00"


def test_hostile_text_in_every_field(make_config, hostile_root, tmp_path):
    config = make_config(f"data.root={hostile_root}", "train.steps=2")
    preview = build_preview(config, 4)
    plain = parse_page(write_preview(preview, tmp_path / "plain.html").read_text())
    given: dict[str, str] = {}
    hostile = poisoned(preview, given)
    page = parse_page(write_preview(hostile, tmp_path / "hostile.html").read_text())
    # Not an element more; line ends and turns are made of texts, which are others here.
    tags, plain_tags = (
        Counter(e.tag for e in p.all() if e.tag != "u" and e.classes != ["turn"])
        for p in (page, plain)
    )
    assert tags == plain_tags
    assert not any(name.startswith("on") for e in page.all() for name in e.attributes)
    # And all that is shown can be read.
    said = page.text + "".join(text for e in page.all() for text in e.attributes.values())
    places = {place.partition("=")[0] for place, text in given.items() if visible(text) in said}
    assert places == {"source", "key", "task", "text", "tags", "problem", "reason", "shard",
                      "detail"}  # fmt: skip


def test_what_is_left_out_is_said(make_config, hostile_root, tmp_path):
    config = make_config(f"data.root={hostile_root}", "train.steps=2")
    preview, page = show(config, 6, tmp_path)
    unreadable = [sample for sample in preview.samples if sample.problem is not None]
    assert {sample.key for sample in unreadable} == {"cut"}
    problem = page.with_class("problem")[0].text
    assert problem.startswith("left out when it is read: image")
    assert [(r.reason, r.count, r.example.key) for r in preview.rejected] == [("json", 1, "broken")]
    rejected = page.with_tag("table")[-1].text
    assert "json" in rejected
    assert "broken" in rejected

    stats = blend_stats(config)
    (source,) = stats.sources.values()
    dropped = 100 * source.dropped / (source.samples + source.dropped)
    assert dropped > 20
    table = next(table for table in page.with_tag("table") if "sources" in table.classes)
    cells = [cell.text for cell in table.with_tag("td")]
    assert cells[1] == f"{round(source.samples):,}"
    assert cells[4:6] == [f"{round(source.tokens):,}", "100.0 %"]
    assert cells[6:8] == [f"{round(source.trained_tokens):,}", "100.0 %"]
    assert cells[-3:] == [f"{dropped:.1f} %", f"{100 * source.lost_share:.1f} %", "1"]


def test_shortened_samples_say_so(make_config):
    config = make_config("stage.sequence_length=170", "data.blend={single: 1, pairs: 1}")
    preview = build_preview(config, 60)
    tiles = [s for s in preview.samples if s.plan.shortened_tiles]
    turns = [s for s in preview.samples if s.plan.cut_turns]
    assert tiles
    assert turns
    assert (
        f"at most {tiles[0].plan.max_num_tiles} per image instead of 6"
        in describe_cuts(tiles[0])[0]
    )
    assert describe_cuts(turns[0])[-1] == "turns cut: the first 1 of 2 are kept"
    assert all(describe_cuts(s) == [] for s in preview.samples if s not in tiles and s not in turns)
    for sample in preview.samples:
        assert sum(len(span.ids) for span in sample.spans) == sample.plan.length <= 170
        # The task, only where it says more than the kind.
        kind = ["task test", "conversation"] if sample.source == "single" else ["conversation"]
        assert describe(sample)[: len(kind)] == kind


def test_frames_of_a_video(make_config, tmp_path):
    write_source(tmp_path / "data", 4)
    config = make_config(f"data.root={tmp_path / 'data'}", "data.num_video_frames=4")
    preview, page = show(config, 4, tmp_path)
    for card, sample in zip(cards(page), preview.samples, strict=True):
        assert sample.images
        assert [image.size for image in sample.images] == [None] * sample.plan.num_tiles
        captions = [caption.text for caption in card.with_tag("figcaption")]
        frames = range(1, sample.plan.num_tiles + 1)
        assert captions == [f"{number}: frame of the video → 1 tile" for number in frames]


def test_reads_only_what_it_shows(make_config, monkeypatch):
    read = []
    original = MicroBatchReader.read_sample

    def spy(self, request):
        read.append(request.key)
        return original(self, request)

    monkeypatch.setattr(MicroBatchReader, "read_sample", spy)
    preview = build_preview(make_config(), 3)
    assert read == [sample.key for sample in preview.samples]


def test_fewer_samples_than_asked_for(make_config):
    config = make_config("data.blend={text: {max_epochs: 1}}")
    preview = build_preview(config, 1000)
    assert len(preview.samples) == 15


def test_text_of_single_tokens(tiny_tokenizer):
    text = "héllo 日本 😀 \ufffd\n x\ufffd"
    ids = tiny_tokenizer.encode(text)
    texts = tiny_tokenizer.decode_each(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "" in texts  # parts of a character
    assert tiny_tokenizer.decode_each([]) == []


def test_visible():
    assert visible("a\n\tb \x1b[0m \u202e \u200d 日") == "a\n\tb \\u001b[0m \\u202e \u200d 日"


def test_terminal(make_config, hostile_root, tmp_path):
    config = make_config(f"data.root={hostile_root}", "train.steps=2")
    preview = build_preview(config, 4)
    written = io.StringIO()
    print_preview(preview, Console(file=written, width=400))
    text = written.getvalue()
    assert "\x1b" not in text
    assert "⟦日本 😀 <|im_start|>user↵\n\\u001b[31m\\u202e ok<|im_end|>↵⟧" in text
    assert "300 × 200 pixels → 3 × 2 tiles and the thumbnail" in text
    assert "left out when it is read: image" in text
    assert len(re.findall(r"step +\d+ sequence +\d+ [█▓░]{40} ", text)) == len(preview.sequences)
    assert re.search(r"<b>&evil: [\d.]+% dropped, [\d.]+% of its tokens lost, 1 rejected", text)
    assert "rejected 1 of <b>&evil: json, such as evil-000000.tar broken" in text


def test_command(make_config, tokenizer_folder, shards, tmp_path):
    overrides = [f"model.tokenizer={tokenizer_folder}", f"data.root={shards}"]
    overrides += [f"run.dir={tmp_path / 'run'}", "train.steps=3"]
    arguments = ["data", "preview", "configs/run/tiny/sft.yaml", *overrides]
    out = tmp_path / "preview.html"
    done = CliRunner().invoke(app, [*arguments, "--samples", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output == f"written to {out}\n"
    assert len(cards(parse_page(out.read_text()))) == 2
    done = CliRunner().invoke(app, [*arguments, "--samples", "1"])
    assert done.exit_code == 0, done.output
    assert "step 1, sequence 0" in done.output
    assert CliRunner().invoke(app, [*arguments, "--samples", "0"]).exit_code == 2
