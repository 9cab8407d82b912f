"""Encoders of timm: from their folders to exports, which transformers computes alike."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import export_runs, small_folders
from helpers.encoders import CLIP, ENCODERS, SIDE_BY_SIDE
from helpers.export_logits import export_logits
from helpers.timm_folders import make_model, make_timm_folder, timm_config
from helpers.timm_reference import timm

from nvlm.config.encoders.timm import TimmConfig
from nvlm.convert import convert_from_hf, convert_from_nvlm, convert_to_hf
from nvlm.convert.export.config import serving_differences
from nvlm.convert.export.files import _write_modeling_files
from nvlm.convert.export_config import config_of_export
from nvlm.convert.hf.folder import HfFolder
from nvlm.convert.hf.timm_folder import interpolation_note
from nvlm.convert.tables.timm import interpolate_positions
from nvlm.convert.verify import verify
from nvlm.errors import ConvertError
from nvlm.model.encoders.timm import Encoder

# In the ordinary suite, one stands for all: without its last layer, of a size of its own.
CASES = [
    name if name == "CLIP" else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS
]


def make_export(folder, overrides, image_size=None) -> export_runs.Exported:
    config = small_folders.convert_config(*overrides)
    make_timm_folder(folder / "vision", config.model.vision, image_size)
    small_folders.make_language_folder(folder / "language", config)
    checkpoint = convert_from_hf(
        folder / "vision", folder / "language", config, folder / "checkpoint"
    )
    return export_runs.Exported(config, checkpoint, convert_to_hf(checkpoint, folder / "export"))


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same(name, tmp_path, tmp_path_factory, monkeypatch, measure):
    converted = make_export(tmp_path, ENCODERS[name])
    vision = converted.config.model.vision
    logits = export_logits(converted, monkeypatch, tmp_path_factory.getbasetemp() / "modules")
    assert torch.equal(logits.read_back, logits.checkpoint)
    what = f"logits of the export, largest difference, encoder {name}"
    measure(what, "our Megatron model", logits.largest_difference, 1e-4)
    assert logits.answers == logits.transformers_answers

    # Processor, configuration and modelling files all have the encoder's own statistics.
    values = json.loads((converted.export / "config.json").read_text())["vision_config"]
    assert values["module"]["pixel_mean"] == list(vision.pixel_statistics[0])
    processor = json.loads((converted.export / "preprocessor_config.json").read_text())
    assert processor["image_std"] == list(vision.pixel_statistics[1])
    assert not (converted.export / "modeling_intern_vit.py").exists()

    found = config_of_export(HfFolder(converted.export)).model.vision
    assert found == vision.model_copy(update={"init_std": found.init_std})
    again = convert_from_nvlm(converted.export, converted.config, tmp_path / "again")
    assert verify(converted.checkpoint, again).differences == []
    assert any("vLLM cannot load it" in text for text in serving_differences(converted.config))


def test_several_layers_of_an_internvit(tmp_path, tmp_path_factory, monkeypatch, measure):
    """Its folder says nothing of them; an export does, and is read back with them alone."""
    converted = export_runs.make_export(tmp_path, ["model.vision.feature_layers=[-2, -1]"])
    logits = export_logits(converted, monkeypatch, tmp_path_factory.getbasetemp() / "modules")
    assert torch.equal(logits.read_back, logits.checkpoint)
    what = "logits of the export, largest difference, two layers of an InternViT"
    measure(what, "our Megatron model", logits.largest_difference, 1e-4)
    assert logits.answers == logits.transformers_answers
    assert config_of_export(HfFolder(converted.export)).model.vision.feature_size == 2 * 160
    again = convert_from_nvlm(converted.export, converted.config, tmp_path / "again")
    assert verify(converted.checkpoint, again).differences == []
    assert verify(converted.checkpoint, converted.export).differences == []
    said = " ".join(serving_differences(converted.config))
    assert "vLLM cannot load it: the connector reads hidden states of several" in said

    plain = small_folders.convert_config()
    with pytest.raises(ConvertError, match=r"feature_layers is \[-2, -1\], expected None"):
        convert_from_nvlm(converted.export, plain, tmp_path / "plain")


def test_a_folder_has_timms_weights(tmp_path, parallel, measure):
    """Of another image size: positions are interpolated as timm interpolates them."""
    converted = make_export(tmp_path, [CLIP], image_size=168)
    vision = converted.config.model.vision
    assert isinstance(vision, TimmConfig)
    folder = HfFolder(tmp_path / "vision")
    note = interpolation_note(folder, converted.config.model)
    assert note is not None and "12 x 12 patches were interpolated to 8 x 8" in note
    theirs = make_model(vision, image_size=168)
    theirs.set_input_size((vision.image_size, vision.image_size))
    ours = Encoder(SimpleNamespace(**vision.module_settings()))
    weights = small_folders.read_tensors(converted.export)
    prefix = "vision_model."
    ours.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        found = ours(pixels)
        (expected,) = theirs.forward_intermediates(
            pixels, indices=[vision.num_layers - 2], output_fmt="NLC", intermediates_only=True
        )
    difference = float((found - expected).norm() / expected.norm())
    measure("features of converted weights, positions interpolated", "timm", difference, 1e-5)


def make_side_by_side(folder, config) -> list:
    """The folder of each encoder of SIDE_BY_SIDE, as it is published."""
    internvit, siglip = config.model.vision.parts.values()
    alone = SimpleNamespace(model=SimpleNamespace(vision=internvit))
    small_folders.make_vision_folder(folder / "internvit", alone)
    make_timm_folder(folder / "siglip", siglip)
    small_folders.make_language_folder(folder / "language", config)
    return [folder / "internvit", folder / "siglip"]


def test_side_by_side_transformers_computes_the_same(
    tmp_path, tmp_path_factory, monkeypatch, measure
):
    """Each from its own folder; the export resizes a tile for the second as training does."""
    config = small_folders.convert_config(SIDE_BY_SIDE)
    folders = make_side_by_side(tmp_path, config)
    language = tmp_path / "language"
    checkpoint = convert_from_hf(folders, language, config, tmp_path / "checkpoint")
    export = convert_to_hf(checkpoint, tmp_path / "export")
    converted = export_runs.Exported(config, checkpoint, export)
    modules = tmp_path_factory.getbasetemp() / "modules"
    logits = export_logits(converted, monkeypatch, modules)
    assert logits.answers == logits.transformers_answers
    assert torch.equal(logits.read_back, logits.checkpoint)
    what = "logits of the export, largest difference, encoders side by side"
    measure(what, "our Megatron model", logits.largest_difference, 1e-4)

    vision = config_of_export(HfFolder(export)).model.vision
    assert list(vision.parts) == ["encoders.0", "encoders.1"]
    again = convert_from_nvlm(export, config, tmp_path / "again")
    assert verify(checkpoint, again).differences == []
    assert verify(folders[0], checkpoint).differences == []  # it finds its part
    assert any("encoders side by side" in text for text in serving_differences(config))

    with pytest.raises(ConvertError, match=r"--vision is given 1 times.*has 2 encoders: give"):
        convert_from_hf(folders[0], language, config, tmp_path / "out")
    with pytest.raises(ConvertError, match=r"siglip/config.json.*--vision 0 needs \['InternVision"):
        convert_from_hf(folders[::-1], language, config, tmp_path / "out")
    alone = small_folders.convert_config(CLIP)
    with pytest.raises(ConvertError, match=r"given 2 times, and model\.vision of kind timm has 1"):
        convert_from_hf(folders, language, alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoder", [CLIP, SIDE_BY_SIDE], ids=["CLIP", "side by side"])
def test_files_are_named_where_transformers_4_looks(encoder, tmp_path):
    """It brings along what the file of a class names, and nothing that those name in turn."""
    _write_modeling_files(tmp_path, small_folders.convert_config(encoder).model)

    def named(file: str) -> set[str]:
        found = re.findall(r"^\s*from \.(\w+) import", (tmp_path / f"{file}.py").read_text(), re.M)
        return set(found)

    brought = {"configuration_nvlm_d", "modeling_nvlm_d"}
    brought |= named("configuration_nvlm_d") | named("modeling_nvlm_d")
    assert {needed for file in brought for needed in named(file)} <= brought


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_positions_are_interpolated_as_timm_does(num_prefix):
    positions = torch.randn(1, 27**2 + num_prefix, 8)
    for side in (16, 32):
        found = interpolate_positions(positions, side**2 + num_prefix, num_prefix)
        expected = timm().layers.resample_abs_pos_embed(
            positions, [side, side], num_prefix_tokens=num_prefix
        )
        assert torch.equal(found, expected)


def test_clips_weights_are_found_where_timm_has_them(tmp_path):
    """Under the name without the activation that they were trained with; not of other weights."""
    config = small_folders.convert_config(CLIP)
    vision = config.model.vision
    make_timm_folder(tmp_path / "vision", vision)
    small_folders.make_language_folder(tmp_path / "language", config)
    owner, _, name = timm().get_pretrained_cfg(vision.name).hf_hub_id.partition("/")
    architecture, _, tag = name.partition(".")
    assert (owner, tag) == ("timm", "openai") and "quickgelu" not in architecture
    cfg = timm_config(vision)["pretrained_cfg"]
    for tag in ("openai", "laion2b_ft_in1k"):
        there = {"architecture": architecture, "pretrained_cfg": cfg | {"tag": tag}}
        file = tmp_path / "vision/config.json"
        file.write_text(json.dumps(timm_config(vision) | there))
        if tag == "openai":
            convert_from_hf(tmp_path / "vision", tmp_path / "language", config, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        else:
            with pytest.raises(ConvertError, match="architecture is 'vit_large_patch14_clip_336'"):
                convert_from_hf(
                    tmp_path / "vision", tmp_path / "language", config, tmp_path / "out"
                )


def test_another_model_or_other_statistics_are_refused(tmp_path):
    config = small_folders.convert_config(CLIP)
    vision = config.model.vision
    assert isinstance(vision, TimmConfig)
    folder = tmp_path / "vision"
    make_timm_folder(folder, vision)
    small_folders.make_language_folder(tmp_path / "language", config)

    def refused(changes: dict, what: str) -> None:
        (folder / "config.json").write_text(json.dumps(timm_config(vision) | changes))
        with pytest.raises(ConvertError, match=what):
            convert_from_hf(folder, tmp_path / "language", config, tmp_path / "out")

    refused({"architecture": "vit_base_patch16_224"}, "architecture is 'vit_base_patch16_224'")
    refused({"model_args": {"depth": 9}}, r"model_args \{'depth': 9\} make another model")
    other = {"tag": "laion2b", "mean": [0.5] * 3}
    refused({"pretrained_cfg": other}, "model.vision.name=.*quickgelu_336.laion2b has them")
    wider = small_folders.convert_config(CLIP.replace("hidden_size: 64", "hidden_size: 32"))
    (folder / "config.json").write_text(json.dumps(timm_config(vision)))
    with pytest.raises(ConvertError, match="tensors do not fit the model"):
        convert_from_hf(folder, tmp_path / "language", wider, tmp_path / "out")
