"""`nvlm data levels`: CLIP's cosines as computed directly, cut into levels of equal numbers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from PIL import Image
from torch.nn import functional
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.data.index.source_index import open_indexes
from nvlm.errors import DataError
from nvlm.importers.alignment_levels import write_levels

# Of eight samples that begin with an image, those with one; the text is the first answer.
TEXTS = ["a cat", "two dogs", "red", "seven", "a sheet of paper", "it is", "no", "nothing here"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A random CLIP of one layer, and a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(number) for number in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = {**sizes, **ids, "vocab_size": len(words), "max_position_embeddings": 20}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    torch.manual_seed(3)
    model: Any = transformers.CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two shards: conversations, a caption in .txt, text, an image in turn two, a damaged one."""
    folder = tmp_path_factory.mktemp("source") / "pairs"
    images = [draw_image(40 + 7 * n, 60 - 3 * n, n) for n in range(len(TEXTS))]
    pairs = [
        make_sample(f"s{n}", "What?", text, [image])
        for n, (text, image) in enumerate(zip(TEXTS, images, strict=True))
    ]
    pairs[3] = {"__key__": "s3", "png": images[3], "txt": TEXTS[3].encode()}
    # Two images: the mean of both counts.
    pairs[5] = make_sample("s5", "What?", TEXTS[5], [images[5], images[6]])
    later = [("user", "Hi"), ("assistant", "Ho"), ("user", "<image>"), ("assistant", "It.")]
    others = [
        make_sample("text", "What is 1 and 1?", "2", []),
        {"__key__": "later", "0.png": images[0], "json": as_json(*later)},
        make_sample("damaged", "What?", "That.", [images[0][:60]]),
    ]
    write_shard(folder / "pairs-000000.tar", [*pairs[:4], others[0]])
    write_shard(folder / "pairs-000001.tar", [*pairs[4:], *others[1:]])
    return folder


def members_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                found[f"{shard.name}/{member.name}"] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found


def direct_cosine(clip: Path, images: list[bytes], text: str) -> float:
    """By the parts of transformers' model, one pair at a time."""
    model: Any = transformers.CLIPModel.from_pretrained(clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    processor = transformers.CLIPImageProcessor.from_pretrained(clip)
    cosines = []
    with torch.no_grad():
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        of_text = model.text_projection(model.text_model(ids).pooler_output)
        for image in images:
            pixels = processor(Image.open(io.BytesIO(image)).convert("RGB"), return_tensors="pt")
            seen = model.vision_model(pixels["pixel_values"]).pooler_output
            of_image = model.visual_projection(seen)
            cosines.append(float(functional.cosine_similarity(of_text, of_image)))
    return sum(cosines) / len(cosines)


def test_levels_are_clips_cosines_in_equal_numbers(clip, source, tmp_path, make_config, measure):
    out = tmp_path / "data" / "train" / "leveled"
    arguments = ["data", "levels", str(source), str(out), "--clip", str(clip), "--levels", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "level 3: 2 samples, cosines " in done.output
    assert "without a level: 3 samples" in done.output
    before, after = members_of(source), members_of(out)
    said = {name: json.loads(data) for name, data in after.items() if b"alignment_level" in data}
    assert [name.partition("/")[2] for name in said] == [f"s{n}.json" for n in range(len(TEXTS))]
    expected = {}
    for name, content in said.items():
        prefix = name.removesuffix("json")
        images = [d for n, d in before.items() if n.startswith(prefix) and n.endswith("png")]
        cosine = direct_cosine(clip, images, TEXTS[int(name[-6])])
        expected[name] = cosine
        error = abs(content["alignment_score"] - cosine)
        measure(f"CLIP's cosine of {name}", "transformers' parts, one by one", error, 2e-6)
    in_order = sorted(expected, key=lambda name: expected[name])
    assert [said[name]["alignment_level"] for name in in_order] == [0, 0, 1, 1, 2, 2, 3, 3]
    # All else stays as it is.
    for name, data in before.items():
        if name not in said:
            assert after[name] == data, name
            continue
        own = {n: v for n, v in said[name].items() if not n.startswith("alignment_")}
        assert own == json.loads(data)
    assert after.keys() - before.keys() == {"pairs-000000.tar/s3.json"}
    samples = "stage.alignment={levels_from: samples, num_levels: 4}"
    root = f"data.root={tmp_path / 'data'}"
    (index,) = open_indexes(make_config(root, samples, "data.max_skipped_share=1"))
    assert len(index) == len(TEXTS) + 2 and [r.key for r in index.rejected] == ["damaged"]


def test_what_cannot_be_scored_is_said(clip, source, tmp_path):
    (tmp_path / "there").mkdir()
    for arguments, said in (
        ((tmp_path / "no", tmp_path / "out", clip), "no folder with shards"),
        ((source, tmp_path / "there", clip), "there: exists; name a new folder"),
        (
            (source, tmp_path / "out", tmp_path / "there"),
            "no config.json; expected a folder of a C",
        ),
        ((source, tmp_path / "out", "assets/tiny/qwen2"), "a model of type qwen2; expected"),
        ((source, tmp_path / "out", clip, 9), "8 samples begin with an image, which cannot be 9"),
    ):
        with pytest.raises(DataError, match=said):
            write_levels(*map(Path, arguments[:3]), *arguments[3:])  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
