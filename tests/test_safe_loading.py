"""Damaged and hostile checkpoints: one message with the file, and nothing of theirs runs."""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.checkpoint_io import read_config, read_progress, read_sharded, write_checkpoint
from nvlm.config import load_config
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.errors import CheckpointError, NvlmError


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    platform.current()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def state(value: float = 0.0) -> dict:
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return {
        "weight": ShardedTensor.from_rank_offsets("weight", torch.full((4, 3), value)),
        "rng": ShardedObject("rng", torch.full((2,), value), (1,), (0,)),
        "scheduler": {"num_steps": int(value)},
    }


@pytest.fixture(scope="module")
def whole(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    progress = {"step": 1, "counters": {}, "layout": {}, "data_state": {}}
    config = load_config(Path("configs/run/tiny/sft.yaml"), [])
    target = tmp_path_factory.mktemp("whole") / "step_00000001"
    return write_checkpoint(target, state(7.0), config, progress)


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "step_00000001"))


def test_whole(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    # Set in some images; it would have torch read `common.pt` as code.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    loaded = read_sharded(checkpoint, state())
    assert loaded["weight"].tolist() == [[7.0] * 3] * 4
    assert loaded["rng"].tolist() == [7.0, 7.0]
    assert loaded["scheduler"] == {"num_steps": 7}
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(7, 256)) * (1 + path.stat().st_size // 200))


def gone(path: Path) -> None:
    path.unlink()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut, empty, garbage, gone, pipe])
@pytest.mark.parametrize("name", [".metadata", "common.pt", "metadata.json", "distcp"])
def test_damaged(name: str, damage: Callable[[Path], None], checkpoint: Path):
    for path in checkpoint.glob("*.distcp") if name == "distcp" else [checkpoint / name]:
        damage(path)
    with pytest.raises(CheckpointError) as raised:
        read_sharded(checkpoint, state())
    message = str(raised.value)
    assert str(checkpoint) in message
    assert name in message or damage is garbage  # then torch only knows which object it read
    assert "\n" not in message
    assert "weights_only" not in message


@pytest.mark.parametrize(
    "name, damage",
    [("config.yaml", empty), ("config.yaml", garbage)]
    + [("progress.json", damage) for damage in (cut, empty, garbage)],
)
def test_damaged_text(name: str, damage: Callable[[Path], None], checkpoint: Path):
    damage(checkpoint / name)
    with pytest.raises(NvlmError, match=name) as raised:
        read_config(checkpoint) and read_progress(checkpoint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[]", "7", '{"step": "1"}', "{}", '{"step": 1}'])
def test_progress_of_another_form(content: str, checkpoint: Path):
    (checkpoint / "progress.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        read_progress(checkpoint)


class Code:
    """A pickle of it calls `function` when it is read."""

    def __init__(self, function: Callable, *arguments: str):
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        return self._call


def hostile(mark: Path) -> dict[str, Code]:
    return {
        "posix.system": Code(os.system, f"touch {mark}"),
        "eval": Code(eval, f"open({str(mark)!r}, 'w')"),
        "torch.serialization.load": Code(torch.load, str(mark)),
        "torch.hub.load": Code(torch.hub.load, "owner/name", "model"),
        "getattr": Code(getattr, "text", "upper"),
    }


def in_table(checkpoint: Path, code: Code) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(code))


def in_an_entry_of_the_table(checkpoint: Path, code: Code) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    metadata.planner_data = code
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def in_common(checkpoint: Path, code: Code) -> None:
    torch.save({"scheduler": code}, checkpoint / "common.pt")


def in_object(checkpoint: Path, code: Code) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    content = io.BytesIO()
    torch.save(code, content)
    (checkpoint / "code.distcp").write_bytes(content.getvalue())
    place = next(p for i, p in metadata.storage_data.items() if i.fqn.startswith("rng"))
    place.relative_path, place.offset, place.length = "code.distcp", 0, len(content.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("place", [in_table, in_an_entry_of_the_table, in_common, in_object])
def test_code_is_refused_by_name(
    place: Callable[[Path, Code], None],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "it-ran"
    table = (checkpoint / ".metadata").read_bytes()
    for name, code in hostile(mark).items():
        (checkpoint / ".metadata").write_bytes(table)
        place(checkpoint, code)
        with pytest.raises(CheckpointError, match=name):
            read_sharded(checkpoint, state())
        if place in (in_table, in_an_entry_of_the_table):
            with pytest.raises(CheckpointError, match=name):
                CheckpointReader(checkpoint)
        assert not mark.exists()


def test_an_enumeration_as_early_releases_of_python_311_write_it(checkpoint: Path):
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as FORMATS

    in_an_entry_of_the_table(checkpoint, Code(getattr, FORMATS, "TORCH_CONTIGUOUS_FORMAT"))
    assert CheckpointReader(checkpoint).keys()
    in_an_entry_of_the_table(checkpoint, Code(getattr, FORMATS, "__init__"))
    with pytest.raises(CheckpointError, match=r"names builtins\.getattr, which is code"):
        CheckpointReader(checkpoint)


def test_files_outside_the_folder_are_not_opened(checkpoint: Path, tmp_path: Path):
    shutil.copy(next(checkpoint.glob("*.distcp")), tmp_path / "elsewhere.distcp")
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere.distcp"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"\.\./elsewhere\.distcp"):
        read_sharded(checkpoint, state())


def test_yaml_of_a_checkpoint_runs_nothing(checkpoint: Path, tmp_path: Path):
    mark = tmp_path / "it-ran"
    (checkpoint / "config.yaml").write_text(
        f"run: !!python/object/apply:os.system ['touch {mark}']"
    )
    with pytest.raises(CheckpointError, match="python/object"):
        read_config(checkpoint)
    assert not mark.exists()


def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: Path):
    """What torch's and Megatron-core's writers make of it is no OSError."""
    config = load_config(Path("configs/run/tiny/sft.yaml"), [])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
    try:
        with pytest.raises(CheckpointError) as raised:
            write_checkpoint(tmp_path / "step_00000001", state(), config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "step_00000001") in str(raised.value)
    assert "cannot be written: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
