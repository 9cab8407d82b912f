"""What importers make of samples as strangers write them: used, refused by name, or listed."""

from __future__ import annotations

import base64
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.paths import REPOSITORY
from helpers.shard_writing import draw_image, write_shard

from nvlm.batch import IGNORED_LABEL
from nvlm.config.schema import SourceConfig
from nvlm.data.index.source_index import open_indexes
from nvlm.data.loading.loader import sample_request
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.data.order.draws import Draws
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import SampleEncoder
from nvlm.importers import spellings
from nvlm.importers.formats import ImportOptions
from nvlm.importers.image_files import FileFolder
from nvlm.importers.records import Picture, Record, make_record
from nvlm.importers.report import import_with_progress
from nvlm.importers.run import ImportSummary, import_source

PICTURES = [draw_image(40 + number, 30, number, "JPEG") for number in range(4)]
CLIP = b"\0\0\0\x18ftypisom"
BASE64 = base64.b64encode(PICTURES[1]).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"
DOCUMENT = REPOSITORY / "docs" / "import.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> FileFolder:
    path = tmp_path_factory.mktemp("pictures")
    for number, data in enumerate(PICTURES):
        (path / f"{number}.jpg").write_bytes(data)
    (path / "a.mp4").write_bytes(CLIP)
    (path / "b.mp4").write_bytes(CLIP + b"other")
    return FileFolder(path)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def says(content: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def content_of(record: Record) -> dict[str, Any]:
    return json.loads(record.members["json"])


def images_of(record: Record) -> list[int]:
    """Which of `PICTURES` a record has."""
    return [PICTURES.index(data) for name, data in record.members.items() if name[0].isdigit()]


TEXT = {"type": "text", "text": "q"}
CALL = {"function": {"name": "w", "arguments": '{"city": "Z\\u00fcrich"}'}}
CALLED = '<tool_call>\n{"name": "w", "arguments": {"city": "Zürich"}}\n</tool_call>'

# What is trained: (question, answer) or turns with weights; images in order; what is not used.
ONE = [("user", "<image>\nq"), ("assistant", "a")]
USED: dict[str, tuple[dict[str, Any], Any, list[int], tuple[str, ...]]] = {
    # Images.
    "path in a part": (
        chat(user([{"type": "image", "image": "1.jpg"}, TEXT]), says()),
        ONE,
        [1],
        (),
    ),
    "data URL in a part": (
        chat(
            user([{"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}, TEXT]),
            says(),
        ),
        ONE,
        [1],
        ("messages.content.image_url.detail",),
    ),
    "base64 as Anthropic has it": (
        chat(
            user(
                [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/jpeg", "data": BASE64},
                    },
                    TEXT,
                ]
            ),
            says(),
        ),
        ONE,
        [1],
        (),
    ),
    "a part's resolution": (
        chat(user([{"type": "image", "image": "1.jpg", "min_pixels": 4}, TEXT]), says()),
        ONE,
        [1],
        ("messages.content.min_pixels",),
    ),
    "parts that say which image": (
        chat(
            user([{"type": "image", "index": 1}, {"type": "image", "index": 0}, TEXT]),
            says(),
            images=["2.jpg", "3.jpg"],
        ),
        [("user", "<image>\n<image>\nq"), ("assistant", "a")],
        [3, 2],
        (),
    ),
    "marks that name their files": (
        chat(user("Picture 1: <img>2.jpg</img>\nPicture 2: <img>0.jpg</img>\nq"), says()),
        [("user", "Picture 1: <image>\nPicture 2: <image>\nq"), ("assistant", "a")],
        [2, 0],
        (),
    ),
    "marks with numbers": (
        chat(user("<image_2> or <|image_1|>?"), says(), images=["0.jpg", "1.jpg"]),
        [("user", "<image> or <image>?"), ("assistant", "a")],
        [1, 0],
        (),
    ),
    "marks with numbers from 0": (
        chat(user("<image0> or <image 1>?"), says(), images=["0.jpg", "1.jpg"]),
        [("user", "<image> or <image>?"), ("assistant", "a")],
        [0, 1],
        (),
    ),
    "marks of other models": (
        chat(
            user("<ImageHere><|image|><|vision_start|><|image_pad|><|vision_end|>q"),
            says(),
            images=["0.jpg", "1.jpg", "2.jpg"],
        ),
        [("user", "<image><image><image>q"), ("assistant", "a")],
        [0, 1, 2],
        (),
    ),
    "images of turns": (
        chat(user("q", images=["1.jpg"]), says(), user("see <image>", image="0.jpg"), says()),
        [*ONE, ("user", "see <image>"), ("assistant", "a")],
        [1, 0],
        (),
    ),
    "numbered columns": (
        {"question": "q", "answer": "a", "image_10": "1.jpg", "image_9": "0.jpg"},
        ("q", "a"),
        [0, 1],
        (),
    ),
    "a second image": (
        {"question": "q", "answer": "a", "image": "3.jpg", "image_2": "0.jpg"},
        ("q", "a"),
        [3, 0],
        (),
    ),
    "the same image twice": (
        {"question": "q", "answer": "a", "image": "3.jpg", "images": ["3.jpg"]},
        ("q", "a"),
        [3],
        (),
    ),
    "another name of the image": (
        {
            "question": "q",
            "answer": "a",
            "image": "3.jpg",
            "image_path": "train/3.jpg",
            "image_url": "https://a.b/9.jpg",
        },
        ("q", "a"),
        [3],
        ("image_path", "image_url"),
    ),
    "base64 in a field": ({"question": "q", "answer": "a", "image": BASE64}, ("q", "a"), [1], ()),
    "an image under any name": (
        {"caption": "a", "foto": {"bytes": PICTURES[2]}},
        (None, "a"),
        [2],
        (),
    ),
    "a list as JSON": (
        {"caption": "a", "image_paths": '["2.jpg", "0.jpg"]'},
        (None, "a"),
        [2, 0],
        (),
    ),
    "an object that names the image": (
        {"caption": "a", "media": [{"type": "image", "path": "2.jpg", "width": 9}]},
        (None, "a"),
        [2],
        ("media.width",),
    ),
    "a mask": ({"caption": "a", "image": "2.jpg", "mask": "1.jpg"}, (None, "a"), [2], ("mask",)),
    "nothing where a place may be": (
        {"caption": "a", "image": "2.jpg", "objects": {"bbox": []}},
        (None, "a"),
        [2],
        (),
    ),
    # Texts.
    "names in capitals": ({"Question": "q", "Answer": "a", "Image": "2.jpg"}, ("q", "a"), [2], ()),
    "Alpaca": ({"instruction": "Do", "input": "this", "output": "a"}, ("Do\nthis", "a"), [], ()),
    "prompt and response": ({"prompt": "q", "response": "a"}, ("q", "a"), [], ()),
    "query and solution": ({"query": "q", "solution": "a"}, ("q", "a"), [], ()),
    "prompt and completion as turns": (
        {"prompt": [user("q")], "completion": [says()]},
        [("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "context": (
        {"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [3]}},
        ("c\nq", "a"),
        [],
        ("answers.answer_start",),
    ),
    "the class of an image": (
        {"caption": "a", "image": "2.jpg", "label": 3},
        (None, "a"),
        [2],
        ("label",),
    ),
    "history": (
        {"query": "q", "response": "a", "history": [["b", "c"]], "system": "S"},
        [("system", "S"), ("user", "b"), ("assistant", "c"), ("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "a system field": (
        chat(user("q"), says(), system_prompt="S"),
        [("system", "S"), ("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "the same system twice": (
        chat({"role": "system", "content": "S"}, user("q"), says(), system="S"),
        [("system", "S"), ("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "role names of all kinds": (
        {
            "conversations": [
                {"from": "Human", "value": "q"},
                {"role": "BOT", "content": "a"},
                {"speaker": "USER", "text": "r"},
                {"from": "Model", "value": "b"},
            ]
        },
        [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")],
        [],
        (),
    ),
    "turns as columns": (
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
        [("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "turns as JSON": (
        {"messages": json.dumps([user("q"), says()])},
        [("user", "q"), ("assistant", "a")],
        [],
        (),
    ),
    "a speaker's name": (
        chat(user("q", name="bob"), says()),
        [("user", "q"), ("assistant", "a")],
        [],
        ("messages.name",),
    ),
    "tags of web pages": (
        chat(user("What is <img> in <audio></audio>?"), says()),
        [("user", "What is <img> in <audio></audio>?"), ("assistant", "a")],
        [],
        (),
    ),
    # Masks.
    "weight as OpenAI has it": (
        chat(user("q"), says("b", weight=0), user("r"), says("a", weight=1)),
        [("user", "q"), ("assistant", "b", 0), ("user", "r"), ("assistant", "a")],
        [],
        (),
    ),
    "loss and train": (
        chat(
            user("q", train=False),
            says("b", loss=False, train=0.0),
            user("r"),
            says("a", loss_mask=1),
        ),
        [("user", "q"), ("assistant", "b", 0), ("user", "r"), ("assistant", "a")],
        [],
        (),
    ),
    # Tools.
    "a tool": (
        chat(
            user("q"),
            says(None, tool_calls=[CALL | {"id": "1"}, CALL | {"id": "2"}]),
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "tool", "content": "2", "tool_call_id": "2"},
            says(),
        ),
        [
            ("user", "q"),
            ("assistant", f"{CALLED}\n{CALLED}"),
            ("user", "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"),
            ("assistant", "a"),
        ],
        [],
        (),
    ),
    "a tool as ShareGPT has it": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [
            ("user", "q"),
            ("assistant", CALLED),
            ("user", "<tool_response>\n1\n</tool_response>"),
            ("assistant", "a"),
        ],
        [],
        (),
    ),
    "words before a call": (
        chat(user("q"), says("Let me see.", function_call=CALL["function"])),
        [("user", "q"), ("assistant", f"Let me see.\n{CALLED}")],
        [],
        (),
    ),
}


@pytest.mark.parametrize("name", USED)
def test_used(folder: FileFolder, name: str):
    entry, expected, images, unused = USED[name]
    record = make_record("key", entry, [], folder=folder)
    content = content_of(record)
    if isinstance(expected, tuple):
        found = content.get("question"), content.get("answers", [content.get("caption")])[0]
        assert found == expected
    else:
        weights = [turn[2:] for turn in expected]
        assert [(m["role"], m["content"]) for m in content["messages"]] == [t[:2] for t in expected]
        assert [
            tuple(v for k, v in m.items() if k == "weight") for m in content["messages"]
        ] == weights
    assert images_of(record) == images
    assert record.unused == unused


OPTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "a letter": ({"options": ["x", "y"], "answer": "B"}, 1),
    "a letter in brackets": ({"choices": ["x", "y"], "answer": "(b)"}, 1),
    "an index from 0": ({"choices": ["x", "y"], "answer": 1, "hint": None}, 1),
    "a text": ({"options": ["x", "y"], "answer": "y"}, 1),
    "an object": ({"options": {"A": "x", "B": "y"}, "answer": "B"}, 1),
    "labels of digits": (
        {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        1,
    ),
    "objects": (
        {"options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answer": "B"},
        1,
    ),
    "columns": ({"A": "x", "B": "y", "C": "", "D": None, "answer": "B"}, 1),
    "named columns": ({"option_a": "x", "option_b": "y", "answer": "b"}, 1),
    "numbered columns": ({"option1": "x", "option2": "y", "answer": "y"}, 1),
    "letters in the texts": ({"options": ["A. x", "B. y"], "answer": "B. y"}, 1),
    "a list in a text": ({"options": "['x', 'y']", "answer": "B"}, 1),
    "our own": ({"choices": ["x", "y"], "correct": 0, "answer": "A"}, 0),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str):
    entry, correct = OPTIONS[name]
    record = make_record("key", {"question": "q", **entry}, [])
    expected = {"question": "q", "choices": ["x", "y"], "correct": correct}
    assert (content_of(record), record.unused) == (expected, ())


def test_options_that_are_images(folder: FileFolder):
    entry = {"question": "Which is <image 2>?", "options": ["<image 1>", "none"], "answer": "A",
             "image_1": "1.jpg", "image_2": "2.jpg", "image_3": None}  # fmt: skip
    record = make_record("key", entry, [], folder=folder)
    question, answer = content_of(record)["messages"]
    assert question["content"].startswith("Which is <image>?\nA. <image>\nB. none\n")
    assert (answer["content"], images_of(record)) == ("A", [2, 1])


# Reason, and what its message names.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an address": (
        {"caption": "a", "image_url": "https://a.b/c.jpg"},
        "missing_image",
        "image_url .*download it first",
    ),
    "an address in a part": (
        chat(user([{"type": "image_url", "image_url": {"url": "http://a.b"}}]), says()),
        "missing_image",
        "download it first",
    ),
    "an index that is left out": (
        chat(user([{"type": "image", "index": 1}, TEXT]), says(), images=["0.jpg", "1.jpg"]),
        "image_count",
        "images 1 of 2",
    ),
    "a gap in the numbers": (
        {"caption": "a", "image_1": "1.jpg", "image_3": "2.jpg"},
        "image_count",
        "numbered 1, 3",
    ),
    "different images": (
        {"caption": "a", "image": "1.jpg", "images": ["2.jpg"]},
        "fields",
        "images and image name different",
    ),
    "an image that is not read": (
        {"caption": "a", "image": "1.jpg", "after": "2.jpg"},
        "missing_image",
        "its field after is '2.jpg'",
    ),
    "bytes that are not read": (
        {"caption": "a", "image": "1.jpg", "after": PICTURES[2]},
        "fields",
        "its field after holds bytes",
    ),
    "two unknown images": (
        {"caption": "a", "one": PICTURES[2], "two": PICTURES[1]},
        "fields",
        "one and two hold images",
    ),
    "two videos": (
        chat(user("q"), says(), videos=["a.mp4", "b.mp4"]),
        "video",
        "videos has 2 videos",
    ),
    "a video and an image": (
        chat(user("q"), says(), video="a.mp4", image="1.jpg"),
        "video",
        "a video beside images",
    ),
    "a part of a video": (
        chat(user([{"type": "video", "video": "a.mp4", "video_start": 1}]), says()),
        "video",
        "video_start",
    ),
    "a mark without image": (chat(user("<|image|>q"), says()), "image_count", "1 <image> marks"),
    "a mark in a caption": (
        {"caption": "<|image|>a", "image": "1.jpg"},
        "image_mark",
        "caption has the mark",
    ),
    "a mark that is not known": (
        chat(user("<im_patch>q"), says(), image="1.jpg"),
        "image_mark",
        "<im_patch>",
    ),
    "an image in Markdown": (
        chat(user("![x](1.jpg) q"), says()),
        "image_mark",
        "turn 0 shows '1.jpg' as Markdown",
    ),
    "an image in Markdown in a question": (
        {"question": "![](2.jpg) q", "answer": "a"},
        "image_mark",
        "question shows '2.jpg'",
    ),
    "a mark of a place": (chat(user("<ref-object>"), says("<bbox>")), "image_mark", "<ref-object>"),
    "numbers and none": (
        chat(user("<image_1><image>"), says(), images=["0.jpg", "1.jpg"]),
        "image_count",
        "some marks say which",
    ),
    "a sound": (chat(user("q"), says(), audios=["a.wav"]), "fields", "audios is .*sound"),
    "a sound in a part": (
        chat(user([{"type": "input_audio", "input_audio": {}}]), says()),
        "messages",
        "input_audio",
    ),
    "places": (
        {"caption": "a", "image": "1.jpg", "bbox": [1, 2, 3, 4]},
        "fields",
        "bbox is .*places",
    ),
    "preferences": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "fields",
        "(chosen|rejected) is .*preference",
    ),
    "a judgement": (
        chat(user("q"), says(), label=False),
        "fields",
        "label .answer. has no use beside messages",
    ),
    "thoughts": (
        chat(user("q"), says(reasoning_content="hm")),
        "fields",
        "messages.reasoning_content",
    ),
    "two answers": (
        {"question": "q", "answer": "5", "solution": "so 5"},
        "fields",
        "solution .answer. has no use",
    ),
    "two questions": (
        {"question": "q", "query": "r", "answer": "a"},
        "fields",
        "question and query say different",
    ),
    "one field twice": (
        {"question": "q", "Question": "r", "answer": "a"},
        "fields",
        "question and Question",
    ),
    "caption and turns": (
        chat(user("q"), says(), caption="c", image="1.jpg"),
        "fields",
        "caption .caption. has no use beside messages",
    ),
    "options beside turns": (
        chat(user("q"), says(), options=["x", "y"]),
        "fields",
        "options .* beside messages",
    ),
    "columns beside turns": (
        chat(user("q"), says(), A="x", B="y"),
        "fields",
        "options in a, b beside messages",
    ),
    "no right option": (
        {"question": "q", "options": ["x", "y"]},
        "fields",
        "options in options, but no answer",
    ),
    "an unclear option": (
        {"question": "q", "options": [1, 2, 3], "answer": 2},
        "fields",
        "answer is 2, which may be B and C",
    ),
    "an option that is not there": (
        {"question": "q", "options": ["x", "y"], "answer": "z"},
        "fields",
        "answer is 'z'",
    ),
    "options with a gap": (
        {"question": "q", "A": "x", "B": "y", "D": "z", "answer": "A"},
        "fields",
        "a, b, d: one is left out",
    ),
    "two system texts": (
        chat({"role": "system", "content": "x"}, user("q"), says(), system="y"),
        "fields",
        "system beside a system turn",
    ),
    "a weight of a question": (
        chat(user("q", weight=1), says()),
        "fields",
        "turn 0 .* messages.weight 1",
    ),
    "half a weight": (chat(user("q"), says(weight=0.5)), "fields", "messages.weight 0.5"),
    "a weight below 0": (chat(user("q"), says(weight=-1)), "fields", "messages.weight -1"),
    "masks that disagree": (chat(user("q"), says(weight=0, loss=True)), "fields", "do not agree"),
    "all masked": (chat(user("q"), says(loss_mask=0)), "untrained", "every answer has weight 0"),
    "a weight of text": (
        {"caption": "a", "image": "1.jpg", "weight": "high"},
        "fields",
        "weight is 'high'",
    ),
    "a weight that is none": (
        {"caption": "a", "image": "1.jpg", "weight": float("nan")},
        "fields",
        "weight is nan",
    ),
    "a weight of 0": ({"caption": "a", "image": "1.jpg", "weight": 0}, "untrained", "weight is 0"),
    "a list of masks": (
        chat(user("q"), says(), loss_mask=[0, 1]),
        "fields",
        r"loss_mask is \[0, 1\]",
    ),
    "results in another order": (
        chat(
            user("q"),
            says(None, tool_calls=[CALL | {"id": "1"}, CALL | {"id": "2"}]),
            {"role": "tool", "tool_call_id": "2", "content": "x"},
            says(),
        ),
        "tools",
        "call 2, expected that of 1",
    ),
    "arguments that are no object": (
        chat(user("q"), says(None, tool_calls=[{"function": {"name": "w", "arguments": "x"}}])),
        "tools",
        "messages.tool_calls",
    ),
    "history of texts": (
        {"query": "q", "response": "a", "history": ["x"]},
        "messages",
        "history has 'x'",
    ),
    "a word misspelt": (
        {"questoin": "q", "anwser": "a"},
        "fields",
        "questoin .is question meant.., anwser .is answer meant",
    ),
    "no answer": (
        {"question": "q", "respons": "a"},
        "fields",
        "without an answer; it has respons .is response meant",
    ),
    "two of one role": (chat(user("q"), user("r"), says()), "role_order", "user user assistant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(folder: FileFolder, name: str):
    entry, reason, names = REFUSED[name]
    with pytest.raises(SampleError) as caught:
        make_record("key", entry, [], folder=folder)
    assert caught.value.reason == reason
    assert re.search(names, caught.value.detail), caught.value.detail


def test_tools_are_offered_in_the_system_turn():
    """As Qwen2.5's chat template writes them."""
    tool = {"type": "function", "function": {"name": "w", "description": "Ä"}}
    said = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
        "provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "w", "description": "Ä"}}\n</tools>\n\nFor each '
        "function call, return a json object with function name and arguments within <tool_call>"
        '</tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call>"
    )
    for given in ([tool], json.dumps([tool]), [tool["function"]]):
        for system, expected in ((None, said), ("S", f"S\n\n{said}")):
            record = make_record("k", chat(user("q"), says(), tools=given, system=system), [])
            assert content_of(record)["messages"][0] == {"role": "system", "content": expected}
    with pytest.raises(SampleError, match="tools has 'x', expected functions with names"):
        make_record("k", chat(user("q"), says(), tools=["x"]), [])


def test_a_video_named_in_any_way(folder: FileFolder):
    part = {"type": "video", "video": "a.mp4", "fps": 1}
    for entry, unused in (
        (chat(user("q"), says(), videos=["a.mp4"]), ()),
        (chat(user("q"), says(), video={"path": "a.mp4"}), ()),
        (chat(user("q"), says(), video=CLIP), ()),
        (chat(user([part, TEXT]), says(), video="a.mp4"), ("messages.content.fps",)),
        (chat(user("<|vision_start|><|video_pad|><|vision_end|>\nq"), says(), video="a.mp4"), ()),
        ({"question": "<video>\nq", "answer": "a", "video_path": "a.mp4"}, ()),
    ):
        record = make_record("key", entry, [], folder=folder)
        assert record.members["mp4"] == CLIP
        assert content_of(record)["messages"][0]["content"] == "<video>\nq"
        assert record.unused == unused


def test_fields_that_name_what_stands_beside(folder: FileFolder):
    """As tars and folders of pictures have it: images beside the text, and their names in it."""
    beside = [Picture(PICTURES[1]), Picture(PICTURES[2])]
    entry = {"caption": "a", "images": ["x/1.jpg", "y/2.jpg"], "url": "https://a.b/c.jpg"}
    record = make_record("key", entry, beside)
    assert (images_of(record), record.unused) == ([1, 2], ("url",))
    for name, value in (("images", ["1.jpg"]), ("image_1", "1.jpg"), ("image", DATA_URL)):
        with pytest.raises(SampleError, match=f"{name} is .*keep one of them"):
            make_record("key", {"caption": "a", name: value}, beside)
    named = [Picture(None, folder.path / "1.jpg")]
    assert make_record("key", {"caption": "a", "file_name": "1.jpg"}, named, folder=folder)
    with pytest.raises(SampleError, match=r"image_2 is .*keep one of them"):
        make_record("key", {"caption": "a", "image_2": "2.jpg"}, named, folder=folder)


def run(form: str, source: Path, out: Path, **options: Any) -> ImportSummary:
    return import_source(ImportOptions(form, source, name="it", **options), out)


def rejected(out: Path) -> list[dict[str, Any]]:
    lines = (out / "train" / "it" / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_is_not_used_is_counted_shown_and_kept(tmp_path: Path, folder: FileFolder, capsys):
    entries: list[dict[str, Any]] = [
        {"id": n, "image": "1.jpg", "caption": "a", "source": "x", f"odd{n}": 1, "\x1b[31m": 1}
        for n in range(3)
    ]
    entries += [chat(user("q", name="bob"), says(), id=3), {"id": "gone", "image": "9.jpg"}]
    entries += [entries[1]]
    source = tmp_path / "data.json"
    source.write_text(json.dumps(entries))
    options = ImportOptions("llava-json", source, name="it", images=folder.path)
    summary = import_with_progress(options, tmp_path / "out")
    assert list(summary.unused_fields.items())[:3] == [
        ("\x1b[31m", 3),
        ("source", 3),
        ("messages.name", 1),
    ]
    assert (
        json.loads((Path(summary.folder) / "import.json").read_text())["unused_fields"]
        == summary.unused_fields
    )
    said = capsys.readouterr().out
    assert "not used: field `source` in 3 samples\n" in said
    assert "not used: field `messages.name` in 1 sample\n" in said
    assert "\x1b" not in said
    missing, again = rejected(tmp_path / "out")
    assert (missing["id"], missing["files"], missing["name"]) == ("gone", ["9.jpg"], "entry 4")
    assert again["detail"] == "id 1 with the same content came before, in entry 1"
    source.write_text(json.dumps(entries[:1] + [{"caption": "a", "image": "1.jpg"}] * 2))
    import_with_progress(
        ImportOptions("llava-json", source, name="more", images=folder.path), tmp_path / "out"
    )
    source.write_text(json.dumps([{"caption": "a", "image": "1.jpg"}]))
    capsys.readouterr()
    import_with_progress(
        ImportOptions("llava-json", source, name="all", images=folder.path), tmp_path / "out"
    )
    assert "not used: no field of any sample\n" in capsys.readouterr().out


def test_a_field_that_weights_the_loss_is_said(tmp_path: Path, folder: FileFolder, capsys):
    """It may be the weight of goods: what it does must be seen."""
    source = tmp_path / "data.json"
    entries = [{"id": n, "image": "1.jpg", "caption": "a", "weight": n} for n in (1, 2, 3)]
    source.write_text(json.dumps([*entries, {"id": 9, "image": "1.jpg", "caption": "a"}]))
    options = ImportOptions("llava-json", source, name="it", images=folder.path)
    assert import_with_progress(options, tmp_path / "out").weighted_by == {"weight": 3}
    said = capsys.readouterr().out
    assert "loss: field `weight` multiplies what 3 samples count in the loss;" in said


@pytest.mark.parametrize(
    ("fields", "level", "unused"),
    [
        ({"similarity": 7}, 7, []),
        ({"alignment_level": 0}, 0, []),
        ({"similarity": 0.31}, None, ["similarity"]),
        ({"similarity": True}, None, ["similarity"]),
    ],
)
def test_levels_of_alignment_are_taken_over(folder: FileFolder, fields, level, unused):
    """As AlignGPT's files say them; a score is none."""
    record = make_record("k", chat(user("q"), says(), image="1.jpg", **fields), [], folder=folder)
    assert json.loads(record.members["json"]).get("alignment_level") == level
    assert list(record.unused) == unused


def test_the_count_of_fields_is_bounded(tmp_path: Path):
    entries = [{"text": "words", f"field{n}": 1, f"other{n}": 1} for n in range(400)]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    summary = run("llava-json", tmp_path / "data.json", tmp_path / "out", samples_per_shard=100)
    assert len(summary.unused_fields) == 501
    assert sum(summary.unused_fields.values()) == 800
    assert next(iter(summary.unused_fields)) == "(fields of other names)"


def test_columns_of_tables(tmp_path: Path):
    """Images under any name, options in columns, dictionaries, dates and structures."""
    table = pa.table(
        {
            "foto": pa.array([{"bytes": data, "path": None} for data in PICTURES[:2]]),
            "question": pa.array(["q", "q"]).dictionary_encode(),
            "A": pa.array(["x", "x"], pa.large_string()),
            "B": ["y", "y"],
            "answer": ["B", "C"],
            "when": pa.array([0, 1], pa.timestamp("s")),
            "price": pa.array([1, 2], pa.decimal128(5, 2)),
            "meta": [{"a": {"b": 1}}, {"a": {"b": None}}],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    summary = run("parquet", tmp_path / "data.parquet", tmp_path / "out")
    assert summary.unused_fields == {"meta": 1, "price": 1, "when": 1}
    (reject,) = rejected(tmp_path / "out")
    assert (reject["name"], reject["reason"]) == ("data.parquet row 1", "fields")
    assert "answer is 'C'" in reject["detail"]
    (shard,) = (tmp_path / "out" / "train" / "it").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert json.loads(tar.extractfile("000000000.json").read()) == {
            "question": "q", "choices": ["x", "y"], "correct": 1,
        }  # fmt: skip
        assert tar.extractfile("000000000.0.jpg").read() == PICTURES[0]


def test_members_of_tars_agree_and_are_listed(tmp_path: Path):
    image = PICTURES[1]
    samples = [
        {"__key__": "a", "jpg": image, "txt": b"One.", "json": b'{"caption": "One.", "url": "u"}'},
        {"__key__": "b", "jpg": image, "txt": b"One.", "json": b'{"caption": "Two."}'},
        {"__key__": "c", "jpg": image, "txt": b"One.", "json": b'{"width": 3}'},
    ]
    write_shard(tmp_path / "source" / "a.tar", samples)
    summary = run("webdataset", tmp_path / "source", tmp_path / "out")
    assert summary.unused_fields == {"url": 1, "width": 1}
    ((reject),) = rejected(tmp_path / "out")
    assert "its JSON and the text beside it say different things" in reject["detail"]

    answers = json.dumps({"q": "What?", "a": ["This."], "hint": "h"}).encode()
    write_shard(tmp_path / "energon" / "a.tar", [{"__key__": "a", "jpg": image, "json": answers}])
    (tmp_path / "energon" / ".nv-meta").mkdir()
    (tmp_path / "energon" / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [a.tar]}")
    (tmp_path / "energon" / ".nv-meta" / "dataset.yaml").write_text(
        "sample_type: {__module__: megatron.energon, __class__: VQASample}\n"
        "field_map: {image: jpg, context: 'json[q]', answers: 'json[a]'}\n"
    )
    summary = run("energon", tmp_path / "energon", tmp_path / "out2")
    assert summary.unused_fields == {"json[hint]": 1}


def test_masks_systems_and_tools_are_trained_as_they_say(tmp_path: Path, make_config):
    """From a stranger's file to labels: exactly the tokens that are to be learnt."""
    entries = [
        chat(user("q"), says("No.", weight=0), user("again"), says("Yes."), id="mask", system="S",
             weight=0.5),
        chat(user("q"), says(None, tool_calls=[CALL]), {"role": "tool", "content": "1"},
             says("Ok."), id="tool"),
    ]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(entries))
    run("llava-json", tmp_path / "data.json", tmp_path / "data")
    config = make_config(f"data.root={tmp_path / 'data'}")
    encoder = SampleEncoder.from_config(config)
    (index,) = open_indexes(config, encoder)
    assert [index.key(row) for row in range(2)] == ["mask", "tool"]
    source = PlannedSource(config, SourceConfig(), index)
    plans = source.plan(Draws.of_source(0, np.arange(2), np.zeros(2, np.int64)))
    reader = MicroBatchReader(config, encoder, {index.source: index.parser})
    expected = [
        ([("system", "S"), ("user", "q"), ("assistant", "No."), ("user", "again"),
          ("assistant", "Yes.")], ["Yes."], 0.5),
        ([("system", str(config.stage.system_message)), ("user", "q"), ("assistant", CALLED),
          ("user", "<tool_response>\n1\n</tool_response>"), ("assistant", "Ok.")],
         [CALLED, "Ok."], 1),
    ]  # fmt: skip
    token = encoder.tokenizer
    start, end = token.control_ids["<|im_start|>"], [token.end_id, *token.encode("\n")]
    for draw, (turns, trained, weight) in zip(plans, expected, strict=True):
        request = sample_request(source, draw)
        assert request.loss_weight == weight
        encoded, _ = reader.read_sample(request)
        tokens = []
        for role, text in turns:
            parts = [f"{role}\n", text] if role == "assistant" else [f"{role}\n{text}"]
            tokens += [start, *(i for part in parts for i in token.encode(part)), *end]
        assert encoded.tokens.tolist() == tokens
        labels = encoded.labels[encoded.labels != IGNORED_LABEL].tolist()
        assert labels == [i for text in trained for i in (*token.encode(text), *end)]


def test_the_documented_names_are_those_that_are_read():
    document = DOCUMENT.read_text()
    tables = {
        **spellings.SPELLINGS,
        "id": spellings.ID_FIELDS,
        "images": spellings.IMAGES,
        "a video": spellings.VIDEOS,
        "refused": tuple(spellings.REFUSED),
        "of a turn: role": spellings.ROLE_FIELDS,
        "of a turn: content": spellings.CONTENT_FIELDS,
        "of a turn: trained or not": spellings.TURN_TRAINED,
    }
    rows = dict(re.findall(r"^\| ([^|`]+?) \| (`[^|]+) \|", document, re.MULTILINE))
    assert list(rows) == list(tables)
    for meaning, names in tables.items():
        assert re.findall(r"`([^`]+)`", rows[meaning]) == list(names), meaning
    for role in spellings.ROLES:
        assert f"`{role}`" in document
