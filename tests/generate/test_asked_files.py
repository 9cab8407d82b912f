"""Questions from folders and JSON lines: what is read, what is refused, what becomes an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm.errors import DataError
from nvlm.generate.asked_files import asked_of_file, asked_of_folder
from nvlm.generate.request import Sampling

GREEDY = Sampling(8)


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_a_folder_is_asked_in_the_order_of_paths(tmp_path):
    for name in ("b.png", "a/z.JPG", "a.webp", "notes.txt", ".hidden.png", ".git/x.png", "d.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = asked_of_folder(tmp_path, "What?", "Be brief.", GREEDY)
    assert [question.id for question in found.asked] == ["a.webp", "a/z.JPG", "b.png"]
    assert found.asked[1].paths == (tmp_path / "a/z.JPG",)
    assert found.asked[0].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat?"},
    ]
    assert found.unread == {"svg": 1}


def test_folders_that_cannot_be_asked(tmp_path):
    with pytest.raises(DataError, match=f"--folder {tmp_path}: no image in it"):
        asked_of_folder(tmp_path, "What?", None, GREEDY)
    with pytest.raises(DataError, match="no such folder"):
        asked_of_folder(tmp_path / "none", "What?", None, GREEDY)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="a file; give its folder"):
        asked_of_folder(tmp_path / "a.png", "What?", None, GREEDY)
    with pytest.raises(DataError, match="2 <image> marks in the prompt for 1 images"):
        asked_of_folder(tmp_path, "<image> or <image>?", None, GREEDY)


def test_lines_of_questions(tmp_path):
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    path = write(
        tmp_path / "questions.jsonl",
        {"prompt": "Hi"},
        "",
        {"id": "second", "messages": turns, "images": ["x.png", "/y/z.png"]},
        {"id": 7, "prompt": "Now?", "temperature": 0.5, "stop": ".", "max_new_tokens": 3},
        {"messages": [{"role": "system", "content": "Own."}, *turns]},
    )
    one, two, three, four = asked_of_file(path, "Be brief.", GREEDY).asked
    assert [one.id, two.id, three.id, four.id] == [1, "second", 7, 5]
    assert one.messages[0] == {"role": "system", "content": "Be brief."}
    assert two.messages[1]["content"] == "<image>\n<image>\nWhat is it?"
    assert two.paths == (tmp_path / "x.png", Path("/y/z.png"))
    assert two.as_fields() == {
        "id": "second", "images": ["x.png", "/y/z.png"], "messages": turns
    }  # fmt: skip
    assert three.sampling == Sampling(3, temperature=0.5, stop=(".",))
    assert three.as_fields()["sampling"] == {
        "temperature": 0.5, "stop": ".", "max_new_tokens": 3
    }  # fmt: skip
    assert (one.sampling, one.as_fields()) == (GREEDY, {"id": 1, "images": [], "prompt": "Hi"})
    assert [turn["role"] for turn in four.messages] == ["system", "user", "assistant", "user"]
    assert four.messages[0]["content"] == "Own."


@pytest.mark.parametrize(
    "line, reason, detail",
    [
        ('{"prompt": "Hi"', "json", "not readable as JSON"),
        ("[1]", "json", "expected an object"),
        ({}, "fields", "expected prompt or messages, found neither"),
        ({"prompt": "Hi", "messages": []}, "fields", "found both"),
        ({"prompt": 5}, "text", "prompt is 5, expected text"),
        ({"prompt": " "}, "text", "prompt is empty"),
        ({"prompt": "<video> Hi"}, "image_mark", "<video>"),
        ({"prompt": "<image>"}, "image_count", "1 <image> marks in the prompt for 0"),
        ({"prompt": "Hi", "images": [3]}, "images", "expected a list of paths"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "role_order", "expected the user"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, "image_count", "1 <image> marks"),
        ({"messages": ["Hi"]}, "messages", "expected an object"),
        ({"messages": "Hi"}, "messages", "expected a list of turns"),
    ],
)
def test_a_line_that_cannot_be_asked_has_a_problem(tmp_path, line, reason, detail):
    path = write(tmp_path / "questions.jsonl", line, {"prompt": "Hi"})
    bad, good = asked_of_file(path, None, GREEDY).asked
    assert bad.problem is not None and good.problem is None
    assert bad.problem.reason == reason and detail in bad.problem.detail
    assert bad.id == 1


@pytest.mark.parametrize(
    "line, problem",
    [
        ({"prompt": "x", "promt": "y"}, "line 2: 'promt' is not read; a line has id, prompt"),
        ({"prompt": "x", "temperature": -1}, "line 2: temperature is -1; it has to be 0"),
        ({"prompt": "x", "top_p": 0}, "top_p is 0"),
        ({"prompt": "x", "top_k": 1.5}, "top_k is 1.5"),
        ({"prompt": "x", "max_new_tokens": True}, "max_new_tokens is True"),
        ({"prompt": "x", "stop": [""]}, r"stop is \(''"),
        ('{"prompt": "x", "temperature": NaN}', "temperature is nan"),
        ({"prompt": "x", "id": None}, "id is None"),
        ('{"prompt": "x", "prompt": "y"}', "line 2: 'prompt' is given twice"),
        (
            '{"messages": [{"role": "user", "content": "a", "role": "system"}]}',
            "line 2: 'role' is given twice",
        ),
        ({"prompt": "x", "id": "1"}, "line 2: the id '1' is that of line 1, too"),
    ],
)
def test_what_is_refused_by_line(tmp_path, line, problem):
    path = write(tmp_path / "questions.jsonl", {"prompt": "first"}, line)
    with pytest.raises(DataError, match=problem):
        asked_of_file(path, None, GREEDY)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"--questions .*none: No such file"):
        asked_of_file(tmp_path / "none", None, GREEDY)
    with pytest.raises(DataError, match="a folder, expected a file"):
        asked_of_file(tmp_path, None, GREEDY)
    with pytest.raises(DataError, match="has no line with a question"):
        asked_of_file(write(tmp_path / "empty", ""), None, GREEDY)
