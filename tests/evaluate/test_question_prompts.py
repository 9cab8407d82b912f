"""What a model is asked is, id by id and pixel by pixel, what training would have asked it."""

from __future__ import annotations

import io
import json
from functools import partial

import av
import numpy as np
import pytest
import yaml
from helpers.shard_writing import as_json, draw_image, write_shard

from nvlm.config import changed, load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.index.stored import decode_images
from nvlm.data.loading.loader import sample_request
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.data.order.draws import Draws
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import SampleEncoder
from nvlm.data.text.prepare import prepare_prompt
from nvlm.evaluate.fit import fit_question
from nvlm.evaluate.questions import choose_questions, read_questions, with_data

REGIONS = [{"text": "exit", "box": [0.1, 0.1, 0.4, 0.2]}, {"text": "gate", "box": [0, 0.5, 1, 1]}]
ASK = {"question": "Is there a cat?"}
KINDS = {
    "caption": {"caption": ["A cat.", "An animal."]},
    "vqa": ASK | {"answers": ["yes", "yes", "no"]},
    "multiple_choice": ASK | {"choices": ["yes", "no"], "correct": 1},
    "ocr": {"kind": "ocr", "text": "exit gate"},
    "ocr_grounded": {"regions": REGIONS},
    "ocr_referring": {"kind": "ocr_referring", "regions": REGIONS},
}


def _video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("heldout")
    folder = root / "heldout"
    wide, square = draw_image(640, 280, 1), draw_image(100, 100, 2)
    samples = [
        {"__key__": name, "json": json.dumps(value).encode(), "png": wide}
        for name, value in KINDS.items()
    ]
    for source in ("plain", "own/settings"):
        write_shard(folder / source / "a-000000.tar", samples)
    talk = [("system", "Be brief."), ("user", "<image>\nWhat?"), ("assistant", "A cat.")]
    later = [("user", "And <image> this?"), ("assistant", "<|im_end|> A dog. ")]
    # Its images leave no room for all their tiles.
    many = [("user", "<image> " * 9 + "Count."), ("assistant", "Nine.")]
    film = [("user", "<video>\nWhat happens?"), ("assistant", "It gets brighter.")]
    talks = [
        {"__key__": "two-turns", "json": as_json(*talk, *later), "0.png": wide, "1.png": square},
        {"__key__": "many", "json": as_json(*many)} | {f"{n}.png": wide for n in range(9)},
        {"__key__": "text", "json": as_json(("user", "1 and 1?"), ("assistant", "2"))},
        {"__key__": "film", "json": as_json(*film), "mp4": _video()},
    ]
    write_shard(folder / "talks" / "a-000000.tar", talks)
    fields = {"ask": "What is it?", "replies": ["a cat", "a dog"], "weights": [3, 1]}
    prepared = folder / "prepared"
    sample = {"__key__": "e", "json": json.dumps(fields).encode(), "png": wide}
    excluded = sample | {"__key__": "excluded"}
    write_shard(prepared / "e.tar", [sample, excluded])
    (prepared / ".nv-meta").mkdir()
    split = {"split_parts": {"heldout": ["e.tar"]}, "exclude": ["e.tar/excluded"]}
    names = {
        "image": "png",
        "context": "json[ask]",
        "answers": "json[replies]",
        "answer_weights": "json[weights]",
    }
    declared = {"__module__": "megatron.energon", "__class__": "VQASample"}
    dataset = {"sample_type": declared, "field_map": names}
    (prepared / ".nv-meta" / "split.yaml").write_text(yaml.safe_dump(split))
    (prepared / ".nv-meta" / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    pools = {name: [f"{name} first", f"{name} second"] for name in ("caption", "ocr")}
    (root / "pools.yaml").write_text(yaml.safe_dump(pools))
    blend = {
        "plain": {"weight": 1},
        "own": {"path": "own/settings", "max_num_tiles": 2, "weight": 1},
        "talks": {"weight": 1},
        "prepared": {"weight": 1, "max_num_tiles": 3},
    }
    config = load_config(
        "configs/run/tiny/sft.yaml",
        [
            f"data.root={root}",
            "data.split=heldout",
            f"data.blend={json.dumps(blend)}",
            f"data.index_dir={root / 'index'}",
            f"data.prompt_pools={root / 'pools.yaml'}",
            "data.image_resize=exact",
            "data.num_video_frames=3",
            "stage.system_message=Look closely.",
        ],
    )
    return with_data(config, root, "heldout")


def _trained(config, encoder):
    """(source, key) -> the sample as training reads it, in the pass that draws its first choice."""
    found = {}
    for number, index in enumerate(open_indexes(config, encoder)):
        source = PlannedSource(config, index.settings, index)
        reader = MicroBatchReader(config, encoder, {index.source: index.parser})
        rows = np.arange(len(index))
        for epoch in range(2000):
            for draw in source.plan(Draws.of_source(number, rows, np.full_like(rows, epoch))):
                identity = index.source, index.key(draw.row)
                if identity in found or draw.variant:
                    continue
                assert draw.fits and not draw.cut_turns
                found[identity] = draw, *reader.read_sample(sample_request(source, draw))
            if sum(name == index.source for name, _ in found) == len(index):
                break
    return found


@pytest.mark.parametrize("tiling", ["stretch", "pad_skip"])
def test_prompts_are_those_of_training(config, tiling: str):
    config = changed(config, {"stage.tiling": tiling})
    encoder = SampleEncoder.from_config(config)
    trained = _trained(config, encoder)
    asked = choose_questions(
        read_questions(config), None, partial(fit_question, config, encoder, 8)
    )
    assert not asked.left_out
    assert {(q.source, q.sample_id) for q in asked.questions} == trained.keys()
    assert len(trained) == 2 * len(KINDS) + 4 + 1
    shortened = set()
    with ShardReader() as reader:
        for question in asked.questions:
            images = list(
                decode_images(reader, question.shard, question.images, question.num_frames, 100)
            )
            prompt = prepare_prompt(
                config, encoder, question.messages, images, question.max_num_tiles
            )
            draw, encoded, tiles = trained[question.source, question.sample_id]
            length = len(prompt.tokens)
            np.testing.assert_array_equal(prompt.tokens, encoded.tokens[:length])
            np.testing.assert_array_equal(prompt.image_mask, encoded.image_mask[:length])
            np.testing.assert_array_equal(prompt.tiles, tiles)
            # What training learns to say next is the truth.
            answer = [*encoder.tokenizer.encode(question.truth.answers[0])]
            rest = [encoder.tokenizer.end_id, *encoder.tokenizer.encode("\n")]
            assert encoded.tokens[length:].tolist() == answer + rest
            if draw.shortened_tiles:
                shortened.add(question.sample_id)
    assert shortened == {"many"}


def test_settings_of_the_checkpoint_decide(config):
    questions = {(q.source, q.sample_id): q for q in read_questions(config).questions}
    assert questions["plain", "caption"].messages[-1]["content"] == "<image>\ncaption first"
    assert questions["own", "ocr"].max_num_tiles == 2
    assert questions["talks", "film"].num_frames == 3
    two_turns = questions["talks", "two-turns"]
    assert [m["role"] for m in two_turns.messages] == ["system", "user", "assistant", "user"]
    assert questions["prepared", "e"].truth.answers == ["a cat", "a dog"]
    # Without the blend, the source is called after its folder, and its settings are gone.
    bare = changed(config, {"data.blend": None})
    names = {question.source for question in read_questions(bare).questions}
    assert names == {"plain", "talks", "prepared"}
