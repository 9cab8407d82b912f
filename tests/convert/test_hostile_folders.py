"""Hugging Face folders made to do harm: refused by name, nothing run, nothing kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import small_folders
from safetensors.torch import load_file, save_file

from nvlm.checkpoint_io import read_config
from nvlm.config import changed, save_config
from nvlm.convert import convert_from_hf, convert_to_hf
from nvlm.convert.hf.folder import HfFolder, read_json
from nvlm.convert.hf.safetensors_file import SafetensorsFile
from nvlm.data.text.chat import load_chat_tokenizer
from nvlm.errors import ConvertError, DataError

# A module that leaves a mark when it is imported.
CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Thing: pass\n"


@pytest.fixture
def language(converted, tmp_path: Path) -> Path:
    """A copy of the language model's folder."""
    shutil.copytree(converted.language, tmp_path / "language")
    return tmp_path / "language"


@pytest.mark.parametrize(
    "contents, expected",
    [
        (b'{"rms_norm_eps": NaN}', "NaN is not a number of JSON"),
        (b'{"rope_theta": Infinity}', "Infinity is not a number of JSON"),
        (b'{"rope_theta": 1e999}', "1e999 is too large for a number"),
        (b'{"rope_theta": ' + b"9" * 5000 + b"}", "not readable as JSON: Exceeds the limit"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' appears twice"),
        (b'{"name": "\xff"}', "byte 10 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "not readable as JSON"),
        (b"", "not readable as JSON: Expecting value"),
        (b"[]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
    ],
)
def test_a_config_that_is_no_json(tmp_path: Path, contents: bytes, expected: str):
    (tmp_path / "config.json").write_bytes(contents)
    with pytest.raises(ConvertError, match=expected) as refused:
        HfFolder(tmp_path)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    assert str(refused.value).startswith(f"{tmp_path}/config.json: ")


def test_a_config_that_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConvertError, match=r"config\.json: is not a regular file"):
        HfFolder(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConvertError, match=r"config\.json: is not a regular file"):
        HfFolder(tmp_path)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConvertError, match="1,099,511,627,776 bytes, too many for JSON"):
        read_json(large)
    with pytest.raises(ConvertError, match="is not a folder"):
        HfFolder(large)


def test_weights_that_are_no_file(language: Path):
    (language / "model.safetensors").unlink()
    os.mkfifo(language / "model.safetensors")
    with pytest.raises(ConvertError, match=r"model\.safetensors: is not a regular file"):
        HfFolder(language)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/../../outside.safetensors", "", 7, "a\0b"]
)
def test_an_index_that_leaves_its_folder(language: Path, name: Any):
    shutil.copy(language / "model.safetensors", language.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (language / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConvertError, match=r"names files that are not in its folder: .*not read"):
        HfFolder(language)


def test_links_as_in_the_hubs_cache_are_followed(converted, language: Path, tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    for file in list(language.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(Path("..") / "blobs" / file.name)
    assert set(HfFolder(language).names()) == set(HfFolder(converted.language).names())


def _write(path: Path, header: Any, num_bytes: int) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(num_bytes))
    return path


def _tensor(start: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header, num_bytes, expected",
    [
        ({"a": _tensor(0, 8), "b": _tensor(4, 12)}, 12, "overlap"),
        ({"a": _tensor(0, 8), "b": _tensor(0, 8)}, 8, "overlap"),
        ({"a": _tensor(8, 16)}, 16, "a gap between them"),
        ({"a": _tensor(0, 8)}, 9, "1 bytes follow the last tensor"),
        ({"a": _tensor(0, 8)}, 7, "not complete"),
        ({"a": _tensor(0, 2**62, [2**60])}, 8, "not complete"),
        ({"a": _tensor(0, 10**30, [2])}, 8, "a dtype, shape or data_offsets that is none"),
        ({"a": _tensor(-8, 0)}, 8, "that is none"),
        ({"a": _tensor(8, 0)}, 8, r"has data_offsets \[8, 0\]"),
        ({"a": _tensor(0, 8, [-2])}, 8, "that is none"),
        ({"a": _tensor(0, 8, [2.0])}, 8, "that is none"),
        ({"a": _tensor(0, 4, [True])}, 4, "that is none"),
        ({"a": _tensor(0, 8, "2")}, 8, "that is none"),
        ({"a": _tensor(0, 8, dtype=["F32"])}, 8, "that is none"),
        ({"a": _tensor(0, 8, [3])}, 8, r"\[3\] of F32 in 8 bytes"),
        ({"a": {"dtype": "F32"}}, 0, "has no dtype, shape or data_offsets"),
        ({"a": [0, 8]}, 8, "has no dtype, shape or data_offsets"),
        ([], 0, "has no header"),
        (b'{"a": ' * 50_000, 0, "nested too deep"),
        (b'{"a": 1, "a": 2}', 0, "'a' appears twice"),
        (b'{"a": NaN}', 0, "NaN is not a number"),
        (b'{"\xff": 1}', 0, "not UTF-8"),
        ({"\x1b[31m": 1}, 0, r"'\\x1b\[31m'"),
    ],
)
def test_a_safetensors_header_that_lies(tmp_path, header, num_bytes: int, expected: str):
    path = _write(tmp_path / "model.safetensors", header, num_bytes)
    with pytest.raises(ConvertError, match=expected) as refused:
        SafetensorsFile(path)
    assert "\x1b" not in str(refused.value)


def test_a_header_as_long_as_it_says(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    for length in (2**63, 200_000_000, 10_000):
        path.write_bytes(length.to_bytes(8, "little") + b'{"a": 1}')
        with pytest.raises(ConvertError, match=r"has no header|its header alone is"):
            SafetensorsFile(path)


def test_tensor_names_cannot_write_to_the_terminal(converted, language: Path, tmp_path: Path):
    tensors = load_file(language / "model.safetensors")
    tensors["\x1b[2Jgone"] = tensors["model.norm.weight"].clone()
    save_file(tensors, language / "model.safetensors")
    with pytest.raises(ConvertError, match="1 extra") as refused:
        convert_from_hf(converted.vision, language, converted.config, tmp_path / "out")
    assert "\x1b" not in str(refused.value)


# ------------------------------------------------------------------------------------------- code


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that code of a folder would make."""
    return tmp_path / "code-was-run"


def _with_code(folder: Path, mark: Path) -> None:
    """Let a folder ask for code of its own in every place that transformers knows."""
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    for name, keys in (
        ("config.json", ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        path = folder / name
        values = json.loads(path.read_text()) if path.is_file() else {}
        values["auto_map"] = {
            key: ["code.Thing", "code.Thing"] if key == "AutoTokenizer" else "code.Thing"
            for key in keys
        }
        path.write_text(json.dumps(values))


def test_no_code_of_a_folder_runs(converted, language: Path, tmp_path: Path, mark: Path, capfd):
    _with_code(language, mark)
    checkpoint = convert_from_hf(converted.vision, language, converted.config, tmp_path / "out")
    assert "auto_map names code of the folder's own, which is not run here" in (
        " ".join(capfd.readouterr().err.split())
    )
    assert not mark.exists()
    assert not list(checkpoint.rglob("*.py"))


def test_a_tokenizer_with_code(converted, tmp_path: Path, mark: Path):
    """Its code is not run, and its export's readers are not sent there."""
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(converted.config.model.tokenizer, tokenizer)
    for file in tokenizer.glob("*.safetensors"):
        file.unlink()
    _with_code(tokenizer, mark)
    (tokenizer / "secret.txt").symlink_to("/etc/hostname")
    checkpoint = tmp_path / "checkpoint"
    small_folders.copy_checkpoint(converted.checkpoint, checkpoint)
    config = read_config(checkpoint)
    config = changed(config, {"model.tokenizer": str(tokenizer)})
    save_config(config, checkpoint / "config.yaml")
    load_chat_tokenizer(str(tokenizer), config.model.image_token)
    export = convert_to_hf(checkpoint, tmp_path / "export")
    assert not mark.exists()
    assert "auto_map" not in json.loads((export / "tokenizer_config.json").read_text())
    assert not any(path.is_symlink() for path in export.rglob("*"))
    ours = {path.name for path in converted.export.iterdir() if path.suffix != ".safetensors"}
    assert {path.name for path in export.iterdir() if path.suffix != ".safetensors"} <= ours | {
        "model.safetensors"
    }


@pytest.mark.parametrize(
    "contents", [b"{", b"{}", b"\xff", b'{"model": {"type": "BPE", "vocab": []}}']
)
def test_a_damaged_tokenizer_is_one_line(converted, tmp_path: Path, contents: bytes):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(Path(converted.config.model.tokenizer) / name, tokenizer)
    (tokenizer / "tokenizer.json").write_bytes(contents)
    with pytest.raises(DataError, match=rf"model\.tokenizer {tokenizer}: ") as refused:
        load_chat_tokenizer(str(tokenizer), "<|vision_pad|>")
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_is_a_pipe(converted, tmp_path: Path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"'tokenizer\.json' is not a regular file"):
        load_chat_tokenizer(str(tmp_path), "<|vision_pad|>")
