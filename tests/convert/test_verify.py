"""`nvlm convert verify`: what is equal, what differs and how, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import small_folders
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.convert import convert_to_hf
from nvlm.convert.verify import verify
from nvlm.errors import ConvertError


def _run(*arguments: Path):
    return CliRunner().invoke(app, ["convert", "verify", *map(str, arguments)])


def test_checkpoint_export_and_source_folders_are_equal(converted, measure):
    sides = [converted.export, converted.vision, converted.language]
    for side in sides:
        expected = len(small_folders.read_tensors(side))
        for a, b in ((converted.checkpoint, side), (side, converted.checkpoint)):
            report = verify(a, b)
            measure(f"tensors that differ, {side.name}", "checkpoint", len(report.differences), 0)
            assert (report.num_equal, report.num_widened) == (expected, 0)
    done = _run(converted.checkpoint, converted.export)
    assert done.exit_code == 0
    assert f"{len(small_folders.read_tensors(converted.export))} tensors equal" in done.stdout


@pytest.fixture
def changed(converted, tmp_path) -> Path:
    """The export with one tensor missing, one too many, one of another shape, two other values."""
    folder = tmp_path / "changed"
    shutil.copytree(converted.export, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if "mlp1.0.weight" in tensors:
            tensors["mlp1.0.weight"][3] += 0.5
            tensors["mlp1.0.weight"][7] *= -1
            tensors["mlp1.0.bias"] = torch.zeros(5)
            save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["mlp1.3.weight"]
    index.write_text(json.dumps(values))
    return folder


def test_differences_are_named_and_measured(converted, changed):
    report = verify(converted.export, changed)
    found = {difference.name: difference.what for difference in report.differences}
    assert found == {
        "mlp1.0.weight": "2 of 640 values, by up to 2",
        "mlp1.0.bias": "shape [640] in A, [5] in B",
        "mlp1.3.weight": "only in A: [192, 512] float32",
    }
    mirrored = {d.name: d.what for d in verify(changed, converted.checkpoint).differences}
    assert mirrored["mlp1.3.weight"] == "only in B: [192, 512] float32"

    done = _run(converted.export, changed)
    assert done.exit_code == 1
    for text in ("mlp1.0.weight", "only in A", "3 different"):
        assert text in done.stdout


def test_equal_tensors_that_compute_something_else(converted, tmp_path):
    """The tensors are the same, the rotary embeddings are not."""
    folder = tmp_path / "language"
    shutil.copytree(converted.language, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    for a, b in ((folder, converted.checkpoint), (converted.language, folder)):
        report = verify(a, b)
        assert [difference.name for difference in report.differences] == ["config.json"]
        assert "linear" in report.differences[0].what
        done = _run(a, b)
        assert done.exit_code == 1
        assert "0 different; config.json differs" in done.stdout
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    text = (checkpoint / "config.yaml").read_text()
    (checkpoint / "config.yaml").write_text(text.replace("rope_base: 10000.0", "rope_base: 5.0"))
    (difference,) = verify(converted.checkpoint, checkpoint).differences
    assert difference.what == "model.language.rope_base is 10000.0 in A, 5.0 in B"


def test_signs_of_zero_are_bits(converted, tmp_path):
    folder = tmp_path / "language"
    shutil.copytree(converted.language, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder, tmp_path / "minus")
    tensors["model.norm.weight"][0] = -0.0
    save_file(tensors, tmp_path / "minus" / "model.safetensors", metadata={"format": "pt"})
    (difference,) = verify(folder, tmp_path / "minus").differences
    assert difference.what == "1 of 192 values, by up to 0"


def test_other_dtypes_are_compared_in_the_wider_one(converted, tmp_path):
    rounded = convert_to_hf(converted.checkpoint, tmp_path / "rounded", dtype="bf16")
    report = verify(rounded, converted.export)
    assert "bfloat16 in A, float32 in B" in report.differences[0].what

    widened = tmp_path / "widened"
    shutil.copytree(rounded, widened)
    for file in widened.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    report = verify(rounded, widened)
    assert report.is_equal
    assert report.num_widened == report.num_equal > 0
    assert "of another dtype" in _run(rounded, widened).stdout


def test_what_cannot_be_compared(converted, tmp_path):
    with pytest.raises(ConvertError, match="nor a Hugging Face folder"):
        verify(tmp_path, converted.export)
    with pytest.raises(ConvertError, match="no tensor of the same name"):
        verify(converted.language, converted.export)
    assert isinstance(_run(tmp_path, converted.export).exception, ConvertError)
