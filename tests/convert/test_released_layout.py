"""`from-hf --nvlm`: folders in the layout in which NVLM-D-72B was released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import small_folders
from helpers.paths import REPOSITORY
from safetensors.torch import save_file
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.convert import convert_from_nvlm
from nvlm.convert.verify import verify
from nvlm.errors import ConvertError


@pytest.fixture
def released(converted, tmp_path) -> Path:
    """The export with the release's `config.json`: none of our own keys, `model_type` llama."""
    folder = tmp_path / "released"
    shutil.copytree(converted.export, folder)
    values = json.loads((folder / "config.json").read_text())
    ours = ("image_boundary", "image_token", "img_context_token_id", "projector_hidden_size",
            "projector_layer_norm_eps", "system_message", "tile_tags")  # fmt: skip
    for key in ours:
        values.pop(key, None)
    for key in ("num_stored_attention_heads", "norm_type"):
        values["vision_config"].pop(key, None)
    values["llm_config"]["model_type"] = "llama"
    values["llm_config"].pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_an_export_becomes_the_checkpoint_again(converted, tmp_path, measure):
    out = convert_from_nvlm(converted.export, converted.config, tmp_path / "out")
    report = verify(converted.checkpoint, out)
    measure("tensors that differ, export converted back", "checkpoint", len(report.differences), 0)


def test_the_released_configuration_is_understood_and_its_epsilon_told(
    converted, released, tmp_path, capsys
):
    out = convert_from_nvlm(released, converted.config, tmp_path / "out")
    assert verify(converted.checkpoint, out).is_equal
    told = " ".join(capsys.readouterr().err.split())
    assert "epsilon 1e-05, this configuration with 1e-06" in told
    assert "which was trained with `separate`; this configuration says block" in told

    config = small_folders.convert_config(
        "model.connector.norm_epsilon=1e-5", "stage.image_boundary=separate"
    )
    convert_from_nvlm(released, config, tmp_path / "out")
    told = capsys.readouterr().err
    assert "epsilon" not in told and "image_boundary" not in told


def test_heads_that_are_not_padded_are_understood(converted, released, tmp_path):
    """The vision encoder's tensors as OpenGVLab publishes them, in an NVLM-D folder."""
    exported = small_folders.read_tensors(released)
    vision = small_folders.read_tensors(converted.vision)
    tensors = {name: t for name, t in exported.items() if not name.startswith("vision_model.")}
    tensors |= {f"vision_model.{name}": tensor for name, tensor in vision.items()}
    for file in released.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, released / "model.safetensors")
    out = convert_from_nvlm(released, converted.config, tmp_path / "out")
    assert verify(converted.checkpoint, out).is_equal
    assert verify(released, out).is_equal


@pytest.mark.parametrize(
    "part, key, value, expected",
    [
        (None, "ps_version", "v1", "ps_version is 'v1', expected 'v2'"),
        (None, "architectures", ["InternVLChatModel"], r"--nvlm needs \['NVLM_D'\]"),
        ("vision_config", "num_hidden_layers", 3, "num_hidden_layers is 3, expected 2"),
        ("llm_config", "vocab_size", 1000, "vocab_size is 1000, expected 1024"),
        ("llm_config", "architectures", ["MistralForCausalLM"], r"--nvlm \(llm_config\) needs"),
    ],
)
def test_another_model_is_refused(converted, released, tmp_path, part, key, value, expected):
    values = json.loads((released / "config.json").read_text())
    (values[part] if part else values)[key] = value
    (released / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConvertError, match=expected):
        convert_from_nvlm(released, converted.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_projector_width_is_refused(converted, released, tmp_path):
    config = small_folders.convert_config("model.connector.ffn_hidden_size=256")
    with pytest.raises(ConvertError, match=r"mlp1\.1\.weight is \[512, 640\], expected \[256, 640"):
        convert_from_nvlm(released, config, tmp_path / "out")


def test_one_form_of_sources(converted, tmp_path):
    config = str(REPOSITORY / "configs/run/tiny/sft.yaml")
    vision, nvlm = ["--vision", str(converted.vision)], ["--nvlm", str(converted.export)]
    for options in ([], vision, [*vision, *nvlm]):
        arguments = ["convert", "from-hf", str(tmp_path / "out"), "--config", config, *options]
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, ConvertError)
        assert "either --vision and --language, or --nvlm" in str(done.exception)
