"""Folders that do not fit: one clear error, and nothing left behind."""

from __future__ import annotations

import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers import small_folders
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvlm.checkpoint_io import read_config
from nvlm.config import changed, save_config
from nvlm.convert import convert_from_hf, convert_to_hf
from nvlm.convert.megatron.tensors import CheckpointTensors
from nvlm.convert.tables.projector import projector_rules
from nvlm.errors import CheckpointError, ConvertError, NvlmError

NORM = "encoder.layers.1.norm1.weight"


@pytest.fixture
def out(tmp_path: Path):
    """Where a refused conversion must leave nothing, not even beside it."""
    folder = tmp_path / "out"
    yield folder / "converted"
    assert not folder.exists() or not list(folder.iterdir())


def _changed_copy(source: Path, target: Path, change) -> Path:
    """A copy of a Hugging Face folder after `change(tensors, config)`."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_folders_of_another_architecture(converted, out):
    with pytest.raises(ConvertError, match=r"'Qwen2ForCausalLM'.*--vision needs \['InternVision"):
        convert_from_hf(converted.language, converted.language, converted.config, out)
    with pytest.raises(ConvertError, match=r"'InternVisionModel'.*--language needs \['Qwen2For"):
        convert_from_hf(converted.vision, converted.vision, converted.config, out)


def test_missing_folder_file_and_weights(converted, tmp_path, out):
    with pytest.raises(ConvertError, match="nowhere: no such folder"):
        convert_from_hf(tmp_path / "nowhere", converted.language, converted.config, out)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConvertError, match=r"config\.json: no such file"):
        convert_from_hf(empty, converted.language, converted.config, out)
    shutil.copy(converted.vision / "config.json", empty)
    with pytest.raises(ConvertError, match=r"neither model\.safetensors\.index\.json nor"):
        convert_from_hf(empty, converted.language, converted.config, out)
    (empty / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ConvertError, match="not readable as safetensors"):
        convert_from_hf(empty, converted.language, converted.config, out)


def test_folders_that_are_not_whole(converted, tmp_path, out):
    """Found before anything is written."""

    def refused(folder: Path, expected: str) -> None:
        with pytest.raises(ConvertError, match=expected):
            convert_from_hf(converted.vision, folder, converted.config, out)

    language = tmp_path / "language"
    shutil.copytree(converted.language, language)
    file = language / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(language, f"has {len(whole) - 1} bytes, but its header mentions {len(whole)}: the down")
    file.write_bytes(whole[:100])
    refused(language, "has 100 bytes, but its header alone is .* not complete")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 8079328\n")
    refused(language, "pointer of git-lfs, not the weights: run `git lfs pull`")

    file.write_bytes(whole)
    index = language / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00002.safetensors"}}))
    refused(language, "names files that are missing: model-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"lm_tail.weight": "model.safetensors"}}))
    refused(
        language, r"names tensors that their files lack: lm_tail\.weight \(model\.safetensors\)"
    )

    index.unlink()
    file.rename(language / "pytorch_model.bin")
    refused(language, r"only pickled weights \(pytorch_model\.bin\).*safetensors")


def test_two_sets_of_weights(converted, tmp_path, out):
    """transformers would read one of them, or add them."""
    language = tmp_path / "language"
    shutil.copytree(converted.language, language)
    shutil.copy(language / "model.safetensors", language / "model-00001.safetensors")
    names = load_file(language / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001.safetensors")}
    (language / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConvertError, match=r"has model\.safetensors beside the files that"):
        convert_from_hf(converted.vision, language, converted.config, out)
    (language / "model.safetensors").unlink()
    (language / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(ConvertError, match=r"adapter_config\.json: transformers adds this adapter"):
        convert_from_hf(converted.vision, language, converted.config, out)


def test_quantised_weights(converted, tmp_path, out):
    def small_integers(tensors, config):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    language = _changed_copy(converted.language, tmp_path / "integers", small_integers)
    with pytest.raises(ConvertError, match=r"model\.norm\.weight is I8.*not quantised"):
        convert_from_hf(converted.vision, language, converted.config, out)

    def declared(tensors, config):
        config["quantization_config"] = {"quant_method": "fp8"}

    language = _changed_copy(converted.language, tmp_path / "declared", declared)
    with pytest.raises(ConvertError, match=r"weights are quantised \(quant_method 'fp8'"):
        convert_from_hf(converted.vision, language, converted.config, out)


def test_output_in_what_is_read(converted, tmp_path):
    language = tmp_path / "language"
    shutil.copytree(converted.language, language)
    before = sorted(path.name for path in language.iterdir())
    with pytest.raises(ConvertError, match=r"lies inside .*, which is read from"):
        convert_from_hf(converted.vision, language, converted.config, language / "checkpoint")
    with pytest.raises(ConvertError, match=r"lies inside .*, which is read from"):
        convert_to_hf(converted.checkpoint, converted.checkpoint / "export")
    assert sorted(path.name for path in language.iterdir()) == before
    assert not (converted.checkpoint / "export").exists()


def test_a_disk_without_room(converted, tmp_path, out):
    """A vocabulary that makes the model larger than the disk; its file is one hole."""
    language = tmp_path / "language"
    shutil.copytree(converted.language, language)
    hidden = converted.config.model.language.hidden_size
    rows = shutil.disk_usage(tmp_path).total // hidden // 16 * 16
    config = small_folders.convert_config(f"model.language.vocab_size={rows}")
    values = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps({**values, "vocab_size": rows}))
    header = {}
    with safe_open(language / "model.safetensors", "pt") as tensors:
        position = 0
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            shape = tensors.get_slice(name).get_shape()
            shape = [rows, hidden] if shape[0] == 1024 and "mlp" not in name else shape
            end = position + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
            position = end
    encoded = json.dumps(header).encode()
    with (language / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + position)
    with pytest.raises(ConvertError, match=r"[GT]B are to be written, but .* has only "):
        convert_from_hf(converted.vision, language, config, out)


def test_links_are_not_written_through(converted, tmp_path):
    """Before anything is converted; what they lead to stays."""
    (tmp_path / "checkpoint").symlink_to(converted.checkpoint)
    (tmp_path / "export").symlink_to(converted.export)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    folders = (converted.vision, converted.language, converted.config)
    for name in ("checkpoint", "nowhere", "circle"):
        with pytest.raises(ConvertError, match=rf"{name}: is a link: name the folder"):
            convert_from_hf(*folders, tmp_path / name)
    with pytest.raises(ConvertError, match="circle/sub: is not a path that can be written"):
        convert_from_hf(*folders, tmp_path / "circle" / "sub")
    with pytest.raises(ConvertError, match="export: is a link"):
        convert_to_hf(converted.checkpoint, tmp_path / "export")
    assert (converted.export / "config.json").is_file()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_full_disk(converted, tmp_path):
    """What was there before stays, and nothing half-written."""
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    before = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="checkpoint: cannot be written: File too large"):
            convert_from_hf(converted.vision, converted.language, converted.config, checkpoint)
        with pytest.raises(CheckpointError, match="export: cannot be written: File too large"):
            convert_to_hf(converted.checkpoint, tmp_path / "export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.stat().st_size for path in checkpoint.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_cannot_be_written(converted, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="out: cannot be written: Not a directory"):
        convert_from_hf(
            converted.vision, converted.language, converted.config, tmp_path / "file" / "out"
        )


def test_other_sizes_are_all_named(converted, out):
    config = small_folders.convert_config("model.vision.num_layers=3", "model.vision.patch_size=28")
    with pytest.raises(ConvertError, match=r"num_hidden_layers is 2, expected 3.*patch_size is 14"):
        convert_from_hf(converted.vision, converted.language, config, out)


def test_missing_extra_and_misshaped_tensors_are_listed(converted, tmp_path, out):
    def change(tensors, config):
        del tensors[NORM]
        tensors["encoder.extra"] = torch.zeros(3)
        tensors["embeddings.class_embedding"] = torch.zeros(1, 160)

    vision = _changed_copy(converted.vision, tmp_path / "vision", change)
    with pytest.raises(ConvertError) as refused:
        convert_from_hf(vision, converted.language, converted.config, out)
    message = str(refused.value)
    assert f"1 missing: {NORM} [160]" in message
    assert "1 extra: encoder.extra [3]" in message
    assert "embeddings.class_embedding is [1, 160], expected [1, 1, 160]" in message


def test_tensors_that_are_not_finite(converted, tmp_path, out):
    def change(tensors, config):
        tensors[NORM][3] = torch.nan

    vision = _changed_copy(converted.vision, tmp_path / "vision", change)
    with pytest.raises(ConvertError, match=rf"{NORM} holds NaN"):
        convert_from_hf(vision, converted.language, converted.config, out)


def test_unsupported_rotary_scaling(converted, tmp_path, out):
    def change(tensors, config):
        config["rope_parameters"]["rope_type"] = "yarn"

    language = _changed_copy(converted.language, tmp_path / "language", change)
    with pytest.raises(ConvertError, match="rotary scaling 'yarn'"):
        convert_from_hf(converted.vision, language, converted.config, out)


def test_another_model_type_than_the_architecture(converted, tmp_path, out):
    def change(tensors, config):
        config["model_type"] = "mistral"

    language = _changed_copy(converted.language, tmp_path / "language", change)
    with pytest.raises(ConvertError, match=r"model_type 'mistral' beside.*opens another model"):
        convert_from_hf(converted.vision, language, converted.config, out)


def test_tied_embeddings_are_untied(converted, tmp_path):
    """A tied source has no output layer, or a copy of the embedding: it starts as that."""

    def tie(tensors, config):
        config["tie_word_embeddings"] = True
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    language = _changed_copy(converted.language, tmp_path / "language", tie)
    checkpoint = convert_from_hf(converted.vision, language, converted.config, tmp_path / "c")
    exported = small_folders.read_tensors(convert_to_hf(checkpoint, tmp_path / "export"))
    embedding = exported["language_model.model.embed_tokens.weight"]
    assert torch.equal(exported["language_model.lm_head.weight"], embedding)


def test_an_output_layer_beside_tied_embeddings(converted, tmp_path, out):
    """transformers 5 computes with the layer then, earlier releases with the embeddings."""

    def tie(tensors, config):
        config["tie_word_embeddings"] = True

    language = _changed_copy(converted.language, tmp_path / "language", tie)
    with pytest.raises(ConvertError, match=r"lm_head\.weight is stored and is not model\.embed"):
        convert_from_hf(converted.vision, language, converted.config, out)


def test_a_folder_that_is_something_else_is_never_replaced(converted, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("years of work")
    with pytest.raises(ConvertError, match="exists and is not a checkpoint"):
        convert_from_hf(converted.vision, converted.language, converted.config, occupied)
    with pytest.raises(ConvertError, match="exists and is not an earlier export"):
        convert_to_hf(converted.checkpoint, occupied)
    assert [path.name for path in tmp_path.rglob("*")] == ["occupied", "thesis.txt"]


def test_export_of_what_is_no_checkpoint_or_incomplete(converted, tmp_path, out):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        convert_to_hf(tmp_path / "nowhere", out)
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    config = (checkpoint / "config.yaml").read_text()
    (checkpoint / "config.yaml").write_text(config.replace("qkv_bias: true", "qkv_bias: false"))
    convert_to_hf(checkpoint, tmp_path / "llama")  # fewer tensors are wanted than there are
    (checkpoint / "config.yaml").write_text(config.replace("vocab_size: 1024", "vocab_size: 2048"))
    with pytest.raises(ConvertError, match=r"word_embeddings\.weight is \[1024, 192\], expected"):
        convert_to_hf(checkpoint, out)


def test_a_failing_export_leaves_nothing(converted, tmp_path, out):
    """The weights are damaged, found only while writing."""
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    for file in checkpoint.glob("*.distcp"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_to_hf(checkpoint, out)


def test_unknown_dtype_and_size(converted, out):
    with pytest.raises(ConvertError, match="expected one of fp32, bf16"):
        convert_to_hf(converted.checkpoint, out, dtype="fp8")
    for size in ("many", "0GB", "-1GB", "0.0001KB", "9" * 400 + "GB"):
        with pytest.raises(NvlmError, match=r"--shard-size .*: expected a size such as 500MB"):
            convert_to_hf(converted.checkpoint, out, shard_size=size)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.visual_attention", "bidirectional"),
        ("model.language.visual_weights", "all"),
        ("model.deepstack", "tiles"),
    ],
)
def test_decoders_that_exports_do_not_compute(converted, tmp_path, out, key: str, value: str):
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    # Stacked tiles need as many layers.
    changes = {key: value, "stage.max_num_tiles": 1, "stage.max_tiles_per_sequence": 8}
    save_config(changed(read_config(checkpoint), changes), checkpoint / "config.yaml")
    with pytest.raises(ConvertError, match=f"{key} {value}: exported models"):
        convert_to_hf(checkpoint, out)


@pytest.mark.parametrize(
    ("overrides", "name", "said"),
    [
        (["model.deepstack=levels"], "deepstack_0", r"model\.deepstack levels: exported models"),
        (
            [
                "model.fusion=cross_attention",
                "model.cross_attention={layer_interval: 1, levels: in_turn}",
                "stage.max_tiles_per_sequence=24",
            ],
            "level_0",
            r"model\.cross_attention\.levels in_turn: layers of exported models",
        ),
    ],
)
def test_connectors_of_levels_are_drawn_and_have_no_export(tmp_path, out, overrides, name, said):
    """Each at random for itself; a folder of a whole NVLM has none of them."""
    config = small_folders.convert_config("model.vision.feature_layers=[-2, -1]", *overrides)
    small_folders.make_vision_folder(tmp_path / "vision", config)
    small_folders.make_language_folder(tmp_path / "language", config)
    folders = tmp_path / "vision", tmp_path / "language"
    checkpoint = convert_from_hf(*folders, config, tmp_path / "checkpoint")
    tensors = CheckpointTensors(checkpoint, projector_rules(config.model))
    names = "mlp1.1.weight", f"mlp1.{name}.mlp.linear_fc1.weight"
    # What is read is there until the next is.
    first, second = (tensors.read_rows(name, 0, tensors.shape(name)[0]).clone() for name in names)
    std = config.model.connector.init_std
    assert not torch.equal(first, second)
    assert abs(float(second.std()) / std - 1) < 0.1
    with pytest.raises(ConvertError, match=said):
        convert_to_hf(checkpoint, out)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tile_tags": "2d_grid"}, r"stage\.tile_tags 2d_grid.* know `none` and `1d`"),
        ({"tile_tags": "2d_box"}, r"stage\.tile_tags 2d_box.* know `none` and `1d`"),
        ({"tiling": "pad"}, r"stage\.tiling pad: exported models.* pad nothing"),
    ],
)
def test_tiles_and_tags_that_exports_do_not_have(
    converted, tmp_path, out, settings: dict, said: str
):
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    config = read_config(checkpoint)
    changes = {f"stage.{key}": value for key, value in settings.items()}
    config = changed(config, {"stage.sequence_length": 1024, **changes})
    save_config(config, checkpoint / "config.yaml")
    with pytest.raises(ConvertError, match=said):
        convert_to_hf(checkpoint, out)
