"""Which checkpoint of a run folder is used, whatever a copy or a kill made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from nvlm.checkpoint_files import changed, find_damage, write_manifest
from nvlm.checkpoint_io import point, resolve_checkpoint
from nvlm.config import load_config
from nvlm.config.compose import save_config
from nvlm.config.run_sections import CheckpointConfig
from nvlm.errors import CheckpointError
from nvlm.run_checkpoints import find_newest

PROGRESS = '{"step":%d,"run":"a","counters":{},"layout":{},"data_state":{}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`checkpoints` with steps 1 to 3: the real small files, and bytes in place of tensors."""
    folder = tmp_path / "run" / "checkpoints"
    config = load_config("configs/run/tiny/sft.yaml")
    for step in (1, 2, 3):
        checkpoint = folder / f"step_{step:08d}"
        save_config(config, checkpoint / "config.yaml")
        (checkpoint / "metadata.json").write_text("{}")
        (checkpoint / "progress.json").write_text(PROGRESS % step)
        (checkpoint / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
        write_manifest(checkpoint)
        point(checkpoint, "latest")
    return folder


def newest(folder: Path) -> tuple[str, list[str]]:
    found = find_newest(folder)
    assert found.checkpoint is not None
    return found.checkpoint.name, found.notes


def test_link_to_newest_needs_no_word(folder):
    assert newest(folder) == ("step_00000003", [])
    assert newest(folder.parent / "checkpoints") == ("step_00000003", [])


@pytest.mark.parametrize("how", ["missing", "folder", "text", "dangling", "older", "elsewhere"])
def test_whatever_latest_is(how, folder, tmp_path, capsys):
    link = folder / "latest"
    link.unlink()
    match how:
        case "folder":
            shutil.copytree(folder / "step_00000003", link)
        case "text":
            link.write_text("step_00000001\n")
        case "dangling":
            link.symlink_to("step_00000009")
        case "older":
            link.symlink_to("step_00000001")
        case "elsewhere":
            link.symlink_to(tmp_path)
    name, notes = newest(folder)
    assert name == "step_00000003"
    assert len(notes) == 1
    assert str(link) in notes[0]
    assert "step_00000003, the newest whole one" in notes[0]
    for path in (folder.parent, folder, link):
        assert resolve_checkpoint(path) == folder / "step_00000003"
    assert capsys.readouterr().err.count("the newest whole one") == 3
    # The next save sets it right, and what was there is not lost.
    point(folder / "step_00000003", "latest")
    assert link.is_symlink()
    assert newest(folder) == ("step_00000003", [])
    assert (folder / "latest.copy" / "progress.json").exists() == (how == "folder")


@pytest.mark.parametrize(
    "name, damage",
    [
        ("__0_0.distcp", "is missing"),
        ("__0_0.distcp", "has 9,999 bytes, not 10,240"),
        ("metadata.json", "is missing"),
        ("config.yaml", "is missing"),
        ("progress.json", "has 0 bytes"),
        ("files.json", "is damaged"),
    ],
)
def test_damaged_newest_is_named_and_the_one_before_is_used(name, damage, folder):
    path = folder / "step_00000003" / name
    if damage.endswith("missing"):
        path.unlink()
    else:
        size = {"progress.json": 0, "files.json": 20}.get(name, 9999)
        path.write_bytes(path.read_bytes()[:size])
    found, notes = newest(folder)
    assert found == "step_00000002"
    assert len(notes) == 1
    assert f"step_00000003 is damaged: {name} {damage}" in notes[0]
    assert "step_00000002 is used" in notes[0]
    with pytest.raises(CheckpointError, match=r"not a checkpoint|cannot be used"):
        resolve_checkpoint(folder / "step_00000003")


def test_a_folder_of_stages_names_its_runs(folder):
    """`folder` is a run's `checkpoints`; the run is one of those in the folder above it."""
    with pytest.raises(CheckpointError, match=f"it has the runs {folder.parent.name}: name one"):
        resolve_checkpoint(folder.parent.parent)


def test_every_flipped_byte_is_found(folder):
    checkpoint = folder / "step_00000003"
    for path in sorted(checkpoint.iterdir()):
        good = path.read_bytes()
        for position in {0, len(good) // 3, len(good) // 2, len(good) - 1}:
            bad = bytearray(good)
            bad[position] ^= 0x10
            path.write_bytes(bytes(bad))
            damage = changed(checkpoint)
            assert damage is not None, (path.name, position)
            assert damage.startswith(path.name), damage
        path.write_bytes(good)
    assert changed(checkpoint) is None


def test_nothing_whole_is_refused(folder):
    for step in (1, 2, 3):
        (folder / f"step_{step:08d}" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint there is whole") as caught:
        find_newest(folder)
    assert str(caught.value).count("__0_0.distcp is missing") == 3
    assert "Nothing was changed" in str(caught.value)


def test_link_without_steps_is_refused(folder):
    for step in (1, 2, 3):
        shutil.rmtree(folder / f"step_{step:08d}")
    with pytest.raises(CheckpointError, match="has latest, and not the step"):
        find_newest(folder)


def test_a_disk_that_is_not_there_is_no_new_run(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.symlink_to(tmp_path / "unmounted")
    with pytest.raises(CheckpointError, match="unmounted, which is not there: is its disk"):
        find_newest(folder)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(CheckpointError, match="checkpoints: cannot be read: Not a directory"):
        find_newest(folder)


def test_copy_of_latest_alone_is_used(folder, tmp_path):
    copy = tmp_path / "copy" / "checkpoints"
    shutil.copytree(folder / "latest", copy / "latest")
    assert newest(copy) == ("latest", [])


@pytest.mark.parametrize("name", [".step_00000003.replaced", "step_00000003.old"])
def test_kill_between_the_renames_of_a_replacement(name, folder, capsys):
    (folder / "step_00000003").rename(folder / name)
    assert newest(folder)[0] == name
    assert resolve_checkpoint(folder / "step_00000003") == folder / name
    assert "is used, which was to be replaced" in capsys.readouterr().err


def test_unreadable_settings_are_damage(folder):
    path = folder / "step_00000003" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for text in ("train: [", "", yaml.safe_dump(values | {"trian": 1})):
        path.write_text(text)
        write_manifest(folder / "step_00000003")
        assert "config.yaml" in (find_damage(folder / "step_00000003") or "")
        assert newest(folder)[0] == "step_00000002"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"latest"}


@pytest.mark.parametrize("keep", [1, 2])
def test_keep_counts_and_removes_whole_checkpoints_of_the_run_itself(keep, folder):
    from nvlm.train.retention import remove_older

    (folder / "step_00000002" / "__0_0.distcp").unlink()
    shutil.copytree(folder / "step_00000001", folder / "step_00000000")
    other = folder / "step_00000000" / "progress.json"
    other.write_text(other.read_text().replace('"run":"a"', '"run":"b"'))
    write_manifest(folder / "step_00000000")
    (folder / ".step_00000009.removing").mkdir()  # a kill came in between
    remove_older(folder, folder / "step_00000003", CheckpointConfig(keep=keep), "a")
    kept = {"step_00000000", "step_00000002", "step_00000003"}
    assert names(folder) == kept | ({"step_00000001"} if keep == 2 else set())


@pytest.mark.parametrize("why", ["best", "keep_every", "portable"])
def test_keep_leaves_what_is_kept_for_another_reason(why, folder):
    from nvlm.train.retention import remove_older

    kept = folder / "step_00000001"
    if why == "best":
        point(kept, "best")
    if why == "portable":
        progress = kept / "progress.json"
        progress.write_text(progress.read_text().replace('"run"', '"kind":"portable","run"'))
        write_manifest(kept)
    wanted = CheckpointConfig(keep=1, keep_every=1 if why == "keep_every" else None)
    shutil.rmtree(folder / "step_00000002")
    shutil.copytree(kept, folder / "step_00000002")
    if why == "portable":
        progress = folder / "step_00000002" / "progress.json"
        progress.write_text(progress.read_text().replace("portable", "quick"))
        write_manifest(folder / "step_00000002")
    remove_older(folder, folder / "step_00000003", wanted, "a")
    others = {"step_00000002"} if why == "keep_every" else set()
    assert names(folder) - {"best"} == {"step_00000001", "step_00000003"} | others


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(folder):
    from nvlm.train.retention import remove_leftovers

    before = names(folder)
    for name in (".step_00000004.writing", ".step_00000000.removing"):
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_text("half")
    (folder / ".step_00000004.replaced").mkdir()  # the earlier one, while another takes its place
    assert remove_leftovers(folder) == [".step_00000004.writing", ".step_00000000.removing"]
    assert names(folder) == before | {".step_00000004.replaced"}
    assert remove_leftovers(folder / "missing") == []


def test_what_is_in_the_way_of_a_step_is_moved(folder, capsys):
    from nvlm.train.checkpoint import _make_way

    _make_way(folder / "step_00000009")
    assert capsys.readouterr().err == ""
    (folder / "step_00000002" / "__0_0.distcp").unlink()
    for step in (2, 3):
        _make_way(folder / f"step_{step:08d}")
    assert names(folder) == {"step_00000001", "step_00000002.damaged", "step_00000003.replaced"}
    assert "is now step_00000002.damaged" in capsys.readouterr().err
    # Neither is taken for a step again.
    (folder / "latest").unlink()
    assert newest(folder)[0] == "step_00000001"
