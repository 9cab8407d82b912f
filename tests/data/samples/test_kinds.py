"""Each kind of sample: what its JSON becomes. What is refused: test_hostile_text.py."""

from __future__ import annotations

import json

import pytest
from helpers.shard_writing import as_json

from nvlm.data.samples import kinds
from nvlm.data.samples.conversations import keep_turns
from nvlm.data.samples.kinds import KINDS, Sample, SampleParser
from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError

POOLS = {
    "caption": ["Describe it.", "Look."],
    "short": ["{question} Briefly."],
    "vqa": ["{question}"],
    "multiple_choice": ["{question}\n{choices}\nWhich?"],
    "ocr": ["Read."],
    "ocr_grounded": ["Where is what?"],
    "ocr_locate": ["Where is <ref>{text}</ref>?"],
    "ocr_read": ["What is at {region}?"],
}


def parse(value: dict, num_images: int = 1, pool_name: str | None = None) -> Sample:
    return SampleParser(POOLS, pool_name).parse({"json": json.dumps(value).encode()}, num_images)


def test_conversation():
    raw = as_json(("system", "Hm."), ("user", "<image> or <image>?"), ("assistant", "A"), task="t")
    sample = SampleParser(POOLS).parse({"json": raw}, 2)
    assert (sample.kind, sample.task, sample.variants) == ("conversation", "t", [])
    assert [turn["role"] for turn in sample.conversation(0)] == ["system", "user", "assistant"]


def test_conversation_as_llava_writes_it():
    turns = [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
    ]  # fmt: skip
    sample = parse({"id": 7, "image": "a/b.jpg", "conversations": turns})
    assert sample.conversation(0) == [
        {"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    assert keep_turns(sample.conversation(0), 1) == sample.conversation(0)[:2]


def test_answers_that_are_context_only():
    raw = as_json(
        ("system", "Hm."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
    )
    value = json.loads(raw)
    assert parse(value, num_images=0).untrained_turns == frozenset()
    value["messages"][2]["weight"] = 0
    value["messages"][3]["weight"] = 0  # of a question, which never is trained
    value["messages"][4]["weight"] = 1
    assert parse(value, num_images=0).untrained_turns == {0}
    value["messages"][4]["weight"] = 0.0
    with pytest.raises(SampleError, match="every answer has weight 0") as caught:
        parse(value, num_images=0)
    assert caught.value.reason == "untrained"
    for position, weight in ((4, 0.5), (4, True), (4, "0"), (4, -1), (3, 1), (4, [0])):
        value["messages"][4]["weight"] = 1
        value["messages"][position]["weight"] = weight
        with pytest.raises(SampleError, match=f"message {position} has weight "):
            parse(value, num_images=0)
        value["messages"][3]["weight"] = None


def test_the_weight_of_a_sample():
    value = {"caption": "A cat."}
    assert parse(value).loss_weight == 1
    assert parse(value | {"loss_weight": 0.25}).loss_weight == 0.25
    for kind in ({"text": "One."}, {"question": "1 + 1?", "answer": "2"}):
        assert parse(kind | {"loss_weight": 3}, num_images=0).loss_weight == 3
    for weight in (-1, float("nan"), float("inf"), "high", True, None, [1], 10**400):
        with pytest.raises(SampleError, match=r"loss_weight is .*, expected a number from 0 to"):
            parse(value | {"loss_weight": weight})
    with pytest.raises(SampleError, match="loss_weight is 0, so nothing of it is trained"):
        parse(value | {"loss_weight": 0})


def test_a_system_field_is_the_system_turn_of_every_kind():
    system = {"role": "system", "content": "Be brief."}
    sample = parse({"question": "What?", "answers": ["a", "b"], "system": " Be brief."})
    assert [sample.conversation(n)[0] for n in range(2)] == [system] * 2
    assert [turn["role"] for turn in sample.conversation(1)] == ["system", "user", "assistant"]
    conversation = json.loads(as_json(("user", "a"), ("assistant", "b")))
    assert parse(conversation | {"system": "Be brief."}, 0).conversation(0)[0] == system
    assert len(parse(conversation | {"system": ""}, 0).conversation(0)) == 2
    conversation["messages"].insert(0, system)
    with pytest.raises(SampleError, match="a field system beside a system turn"):
        parse(conversation | {"system": "Be brief."}, 0)
    with pytest.raises(SampleError, match="kind text has no system turn"):
        parse({"text": "One.", "system": "Be brief."}, 0)


def test_fields_that_would_change_what_is_trained_are_refused_in_shards():
    value = {"question": "What?", "answer": "That.", "source": "left alone"}
    assert parse(value).variants
    with pytest.raises(SampleError, match="the field options of a shard is not read"):
        parse(value | {"options": ["This.", "That."]})
    turns = [{"role": "user", "content": "a", "name": "left alone"},
             {"role": "assistant", "content": "b", "tool_calls": []}]  # fmt: skip
    with pytest.raises(SampleError, match="message 1 has tool_calls, which is not read in shards"):
        parse({"messages": turns}, 0)


def test_caption():
    sample = parse({"caption": " A cat.\n"})
    assert (sample.kind, sample.task, sample.weights) == ("caption", "", [])
    assert sample.variants == [("<image>\nDescribe it.", "A cat."), ("<image>\nLook.", "A cat.")]
    assert sample.conversation(1) == [
        {"role": "user", "content": "<image>\nLook."}, {"role": "assistant", "content": "A cat."},
    ]  # fmt: skip
    assert len(parse({"caption": ["A cat.", "A dog."]}).variants) == 4


def test_caption_in_a_text_file_unless_the_json_says_more():
    parser = SampleParser(POOLS)
    text = "\ufeffA cat.\n".encode()
    assert parser.parse({"txt": text}, 1).variants[0][1] == "A cat."
    # As image crawlers write it: metadata beside the caption.
    metadata = b'{"url": "...", "width": 3}'
    assert parser.parse({"json": metadata, "txt": text}, 1).variants[0][1] == "A cat."
    said = b'{"caption": "A dog."}'
    assert parser.parse({"json": said, "txt": text}, 1).variants[0][1] == "A dog."


def test_question_with_one_answer():
    sample = parse({"question": "What?", "answer": "A cat."}, num_images=2)
    assert (sample.kind, sample.variants) == ("vqa", [("<image>\n<image>\nWhat?", "A cat.")])
    assert parse({"question": "2 + 2?", "answer": "4"}, num_images=0).variants == [("2 + 2?", "4")]


def test_question_with_many_answers():
    sample = parse({"question": "What?", "answers": ["cat", "dog", "cat"]})
    assert [answer for _, answer in sample.variants] == ["cat", "dog"]
    assert sample.weights == [2.0, 1.0]
    weighted = {"question": "What?", "answers": ["a", "b", "c"], "answer_weights": [1, 0, 0.5]}
    sample = parse(weighted)
    assert ([a for _, a in sample.variants], sample.weights) == (["a", "c"], [1.0, 0.5])
    assert parse({"question": "What?", "answers": ["a", "b"]}).weights == []


def test_multiple_choice():
    sample = parse({"question": "What?", "choices": ["cat", "dog"], "correct": 1})
    assert sample.variants == [("<image>\nWhat?\nA. cat\nB. dog\nWhich?", "B")]


def test_ocr():
    assert parse({"kind": "ocr", "text": "EXIT"}).variants == [("<image>\nRead.", "EXIT")]


REGIONS = [
    {"text": "EXIT", "box": [1, 2, 30.0, 40.5]},
    {"text": "way", "quad": [1, 2, 3, 2, 3, 4, 1, 4]},
    {"text": "way", "quad": [[5, 6], [7, 6], [7, 8], [5, 8]]},
]
PLACES = [
    "<box>(1,2),(30,40.5)</box>", "<quad>(1,2),(3,2),(3,4),(1,4)</quad>",
    "<quad>(5,6),(7,6),(7,8),(5,8)</quad>",
]  # fmt: skip


def test_grounded_ocr():
    sample = parse({"regions": REGIONS})
    answer = "".join(f"<ref>{r['text']}</ref>{place}" for r, place in zip(REGIONS, PLACES))
    assert (sample.kind, sample.variants) == (
        "ocr_grounded", [("<image>\nWhere is what?", answer)],
    )  # fmt: skip


def test_referring_ocr_asks_both_ways_but_not_for_a_text_that_stands_twice():
    sample = parse({"kind": "ocr_referring", "regions": REGIONS})
    assert sample.variants == [
        (f"<image>\nWhat is at {PLACES[0]}?", "EXIT"),
        ("<image>\nWhere is <ref>EXIT</ref>?", PLACES[0]),
        (f"<image>\nWhat is at {PLACES[1]}?", "way"),
        (f"<image>\nWhat is at {PLACES[2]}?", "way"),
    ]


def test_interleaved_document():
    parts = [
        {"text": "Two cats.\n\nThen more.\n\n"}, {"image": 0}, {"image": 1},
        {"text": "They sleep."}, {"image": 2},
    ]  # fmt: skip
    sample = parse({"parts": parts}, num_images=3)
    assert sample.kind == "interleaved"
    assert [part["role"] for part in sample.conversation(0)] == ["document"] * 3
    assert [part["content"] for part in sample.conversation(0)] == [
        "Two cats.\n\n", "Then more.\n\n", "<image><image>They sleep.<image>",
    ]  # fmt: skip
    assert len(keep_turns(sample.conversation(0), 2)) == 2


def test_text_only():
    sample = parse({"text": "One.\n\n\nTwo.\nThree."}, num_images=0)
    assert (sample.kind, sample.task) == ("text", "")
    assert [part["content"] for part in sample.conversation(0)] == ["One.\n\n\n", "Two.\nThree."]


def test_pool_of_the_source_then_of_the_task_then_of_the_kind():
    question = {"question": "What?", "answer": "A cat.", "task": "short"}
    assert parse(question).variants[0][0] == "<image>\nWhat? Briefly."
    assert parse(question | {"task": "caption"}).variants[0][0] == "<image>\nWhat?"
    assert parse(question | {"task": "unknown"}).variants[0][0] == "<image>\nWhat?"
    assert parse(question, pool_name="vqa").variants[0][0] == "<image>\nWhat?"
    with pytest.raises(DataError, match="pool 'vqa' cannot ask for samples of kind caption"):
        parse({"caption": "A cat."}, pool_name="vqa")
    with pytest.raises(DataError, match="no prompt pool 'none'; there are caption"):
        SampleParser(POOLS, "none")


def test_video_frames_stand_where_its_mark_is():
    raw = as_json(("user", "<video>\nWhat?"), ("assistant", "A cat."))
    sample = SampleParser(POOLS).parse({"json": raw}, 3, num_frames=3)
    assert sample.conversation(0)[0]["content"] == "<image>\n<image>\n<image>\nWhat?"


def test_every_kind_is_described():
    assert kinds.__doc__ is not None
    for kind in KINDS:
        assert f"\n    {kind} " in kinds.__doc__
