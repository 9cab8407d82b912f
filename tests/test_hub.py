"""Folders by id of the hub: its own client, and a hub on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import hub_server, small_folders
from PIL import Image

import nvlm.hub as hub_of_nvlm
from nvlm.checkpoint_files import ORIGINS_FILE, find_damage
from nvlm.convert import convert_from_hf, convert_to_hf

VISION, LANGUAGE = "somebody/InternViT-small", "somebody/Qwen2-small"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    config = small_folders.convert_config()
    small_folders.make_vision_folder(folder / "vision", config)
    small_folders.make_language_folder(folder / "language", config)
    # What is not needed, and what runs programs where it is opened.
    (folder / "vision" / "modeling_intern_vit.py").write_text("raise SystemExit('run')\n")
    (folder / "vision" / "pytorch_model.bin").write_bytes(b"pickled")
    return {VISION: folder / "vision", LANGUAGE: folder / "language"}


@pytest.fixture(scope="module")
def hub(folders):
    with hub_server.serving() as hub:
        for name, folder in folders.items():
            hub.add(name, folder)
        yield hub


def run(tmp_path: Path, url: str, *arguments: str, **environment: str):
    """`nvlm` as a user starts it, with a cache of its own."""
    return run_program(tmp_path, url, [sys.executable, "-m", "nvlm", *arguments], environment)


def run_program(tmp_path: Path, url: str, command: list[str], environment: dict[str, str]):
    own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def conversion(vision: str, language: str) -> list[str]:
    file = small_folders.REPOSITORY / "configs/run/tiny/sft.yaml"
    options = ["--vision", vision, "--language", language, "--config", str(file)]
    return ["convert", "from-hf", *options, "out", *small_folders.SIZES]


def test_a_checkpoint_is_made_from_two_ids_and_says_of_which_commits(hub, folders, tmp_path):
    language = f"{LANGUAGE}@{hub_server.commit_of(folders[LANGUAGE])}"
    made = run(tmp_path, hub.url, *conversion(VISION, language))
    assert made.returncode == 0, made.stderr
    assert find_damage(tmp_path / "out") is None
    commits = {name: hub_server.commit_of(folder) for name, folder in folders.items()}
    assert json.loads((tmp_path / "out" / ORIGINS_FILE).read_text()) == {
        "vision": {"hub": VISION, "commit": commits[VISION]},
        "language": {"hub": LANGUAGE, "commit": commits[LANGUAGE]},
    }
    for name, commit in commits.items():
        assert f"{name} of the hub at commit {commit}" in made.stderr
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not any(path.endswith((".py", ".bin")) for path in fetched)

    # A second time nothing is asked of the network.
    again = run(tmp_path, "http://127.0.0.1:1", *conversion(VISION, language), HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_a_data_set_is_imported_by_its_id(hub, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    rows = [
        {"image": {"bytes": picture.getvalue(), "path": None}, "question": q, "answer": "red"}
        for q in ("What colour?", "Which one?")
    ]
    (tmp_path / "published" / "data").mkdir(parents=True)
    file = tmp_path / "published" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    (tmp_path / "published" / "loader.py").write_text("raise SystemExit('run')\n")
    commit = hub.add("somebody/colours", tmp_path / "published", "v1", kind="datasets")
    arguments = ["data", "import", "--format", "parquet", "somebody/colours@v1", "shards"]
    made = run(tmp_path, hub.url, *arguments)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "shards" / "train" / "colours"
    assert len(list(folder.glob("*.tar"))) == 1
    summary = json.loads((folder / "import.json").read_text())
    assert summary["num_samples"] == 2
    assert f"read somebody/colours of the hub at commit {commit}" in summary["notes"]
    assert not any(path.endswith(".py") and "/resolve/" in path for path in hub.asked)


@pytest.mark.slow
def test_an_export_is_opened_by_its_id(hub, folders, tmp_path):
    checkpoint = convert_from_hf(
        folders[VISION], folders[LANGUAGE], small_folders.convert_config(), tmp_path / "checkpoint"
    )
    export = convert_to_hf(checkpoint, tmp_path / "export")
    commit = hub.add("somebody/export", export)
    program = "import sys; from nvlm.generate.model_folder import find_model as find; "
    program += "found = find(sys.argv[1]); print(found.path.name, found.config.stage.tile_tags)"
    opened = run_program(tmp_path, hub.url, [sys.executable, "-c", program, "somebody/export"], {})
    assert opened.stdout.split() == [commit, "1d"], opened.stderr


# Says of each id what `folder_of` raises; the hub's client reads its settings when it is imported.
ASK = """
import sys
from nvlm.errors import DataError
from nvlm.hub import folder_of
for name in sys.argv[1:]:
    try:
        print(folder_of(name, "--vision"))
    except DataError as error:
        print(error)
"""


def said_of(tmp_path: Path, url: str, *names: str, **environment: str) -> list[str]:
    arguments = [sys.executable, "-c", ASK, *names]
    return run_program(tmp_path, url, arguments, environment).stdout.splitlines()


def test_what_cannot_be_had_is_one_line(hub, tmp_path):
    hub.gated.add("models/somebody/gated")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing else")
    hub.add("somebody/empty", tmp_path / "empty")
    expected = {
        "somebody/nothing": "no such folder here, and the hub has none of that name, or keeps it "
        "private",
        f"{VISION}@v9": "no such folder here, and the hub's has no such revision",
        "somebody/gated": "no such folder here, and the hub's needs its owner's consent: ask for "
        "it on its page, then `hf auth login` or HF_TOKEN",
        "somebody/empty": "the hub's model has none of *.json, *.safetensors, *.jinja, *.txt, "
        "*.model",
    }
    said = said_of(tmp_path, hub.url, *expected)
    assert said == [f"--vision {name}: {text}" for name, text in expected.items()]


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({}, "and the hub (http://127.0.0.1:1) cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "and HF_HUB_OFFLINE keeps from fetching it"),
    ],
)
def test_without_a_network_it_is_one_line(tmp_path, environment, reason):
    (said,) = said_of(tmp_path, "http://127.0.0.1:1", VISION, **environment)
    assert said == (
        f"--vision {VISION}: no such folder here, nor in the hub's cache "
        f"{tmp_path / 'home' / 'hub'}, {reason}"
    )


def test_a_slip_in_a_path_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").mkdir()
    for name in ("exports/mine", "./owner/name", "/owner/name", "a/b/c", "~/name", "name", "a b/c"):
        assert not hub_of_nvlm.is_hub_id(name), name
    for name in ("nvidia/NVLM-D-72B", "Qwen/Qwen2.5-7B-Instruct@main", "a/b@refs/pr/1"):
        assert hub_of_nvlm.is_hub_id(name), name
    assert hub_of_nvlm.folder_of("exports/mine", "--vision").path == Path("exports/mine")
