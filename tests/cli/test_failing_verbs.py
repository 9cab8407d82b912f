"""Every verb, run into causes outside nvlm: one line, no trace, a documented exit code.

A verb that is added fails here until it has cases of its own.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from helpers.paths import REPOSITORY

from nvlm import cli
from nvlm.cli.app import VerbOrArguments
from nvlm.config import load_config

SFT = str(REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml")
STAGES = str(REPOSITORY / "configs" / "run" / "tiny" / "stages.yaml")
# Set by torchrun; the tests' own environment may be another's.
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# Verb -> cases: (arguments, what the line says). Words in capitals are places, see below.
CASES: dict[str, list[tuple[str, str]]] = {
    "config show": [
        ("NOTHING.yaml", "NOTHING.yaml"),
        ("BYTES.yaml", "BYTES.yaml"),
        ("FOLDER", "FOLDER"),
        ("WORLD_SIZE= SFT", "WORLD_SIZE is empty"),
        ("WORLD_SIZE=auto SFT", "WORLD_SIZE is 'auto'"),
        ("SFT --no-such-option", "no such option"),
        ("STAGES --stage third", "no stage 'third': there are pretrain, sft"),
        ("STAGES stages.sft.train.steps=x", "stages.sft: train.steps: must be a whole number"),
    ],
    "config list": [("FOLDER", "unexpected extra argument")],
    "model summary": [
        ("NOTHING.yaml", "NOTHING.yaml"),
        ("SFT model.language.num_layers=x", "model.language.num_layers"),
        ("STAGES --json", "has stages: say which one: --stage pretrain or --stage sft"),
    ],
    "plan": [
        ("NOTHING.yaml --gpus 8", "NOTHING.yaml"),
        ("SFT", "missing option '--gpus'"),
        ("SFT --gpus 8 --gpu h1000", "--gpu h1000: no such card"),
        ("SFT --gpus 1 --assume nothing=1", "nothing"),
        ("SFT --gpus 6 parallel.tensor=4", "parallel"),
        ("STAGES --gpus 3 --stage sft", "stages.sft: train.global_batch_size 4 is not a multiple"),
    ],
    "doctor": [
        ("NOTHING.yaml", "NOTHING.yaml"),
        ("SFT --seconds never", "should be a valid number"),
        ("SFT data.root=EMPTY run.dir=RUN", "no .tar files"),
        ("SFT data.root=SHARDS run.dir=FILE", "run.dir FILE: is a file"),
        ("WORLD_SIZE=2 RANK=0 SFT", "MASTER_ADDR is not set"),
    ],
    "train": [
        ("NOTHING.yaml", "NOTHING.yaml"),
        ("SFT run.dir=FILE", "run.dir FILE: is a file"),
        ("SFT run.dir=FILE/below", "Not a directory"),
        ("SFT --stage sft", "no stage 'sft': it has no stages"),
        ("STAGES --stage third", "no stage 'third': there are pretrain, sft"),
        ("STAGES --stage sft run.dir=RUN", "stage sft starts from stage pretrain, which has not"),
        ("STAGES run.dir=RUN stages.sft.data.root=EMPTY", "stage "),
        ("SFT run.max_minutes=0", "run.max_minutes"),
        ("SFT run.dir=/proc/nvlm", "run.dir /proc/nvlm: cannot be written"),
        ("WORLD_SIZE=2 SFT train.global_batch_size=2", "RANK is not set"),
        ("WORLD_SIZE=2 RANK=2 MASTER_ADDR=x MASTER_PORT=1 SFT", "RANK is 2"),
        ("WORLD_SIZE=2 RANK=0 SFT", "MASTER_ADDR is not set"),
        ("SFT run.dir=RUN log.mlflow_experiment=e", "log.mlflow_experiment e: "),
        ("SFT run.dir=RUN validation.every=1 validation.benchmarks=[chartq] "
         "validation.benchmarks_dir=EMPTY", "no benchmark 'chartq'"),
        ("SFT run.dir=RUN validation.every=1 validation.benchmarks=[chartqa] "
         "validation.benchmarks_dir=EMPTY", "validation.benchmarks chartqa: EMPTY"),
        ("--replay NOTHING.json", "NOTHING.json: cannot be read"),
        ("--replay FILE", "FILE: not the file of a failed step"),
        ("SFT --replay FILE", "give no CONFIG"),
        ("SFT data.root=EMPTY run.dir=RUN checkpoint.load=random", "no .tar files"),
        ("SFT data.root=EMPTY run.dir=RUN checkpoint.load=FOLDER", "not a checkpoint"),
        ("SFT data.root=EMPTY run.dir=RUN checkpoint.load=CHECKPOINT", ".metadata is damaged"),
    ],
    "ablate": [
        ("NOTHING.yaml", "NOTHING.yaml: no such grid file"),
        ("BYTES.yaml", "BYTES.yaml"),
        ("FOLDER --dry-run", "FOLDER: is a folder"),
        ("GRID.yaml train.steps=x", "train.steps: must be a whole number"),
        ("GRID.yaml --dry-run nothing=1", "unknown key 'nothing'"),
        ("GRID.yaml --dir FILE", "dir FILE: is a file"),
        ("GRID.yaml --dir /proc/nvlm", "cannot be written"),
        ("GRID.yaml --jobs 0", "invalid value for '--jobs'"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=x MASTER_PORT=1 GRID.yaml", "start it alone"),
    ],
    "report": [
        ("NOTHING", "NOTHING: is not there"),
        ("FILE", "FILE: is a file"),
        ("FOLDER", "has no metrics.jsonl"),
        ("TRAINED --out FOLDER", "--out FOLDER: is a folder"),
        ("TRAINED --out /proc/p.html", "cannot be written"),
        ("TRAINED NOTHING --out OUT", "NOTHING: is not there"),
    ],
    "stop": [
        ("NOTHING", "no such folder"),
        ("FILE --wait", "is a file"),
        ("EMPTY", "no run was here"),
    ],
    "generate": [
        ("NOTHING --prompt Hi", "no such checkpoint"),
        ("FILE --prompt Hi", "FILE: a file: expected a checkpoint"),
        ("CHECKPOINT --prompt Hi", ".metadata is damaged"),
        ("RANK= CHECKPOINT --prompt Hi", "RANK is empty"),
        ("CHECKPOINT", "give --prompt, or --questions with many"),
        ("CHECKPOINT --folder FOLDER --out OUT", "give --prompt, or --questions with many"),
        ("CHECKPOINT --prompt Hi --out OUT", "--out is for --folder and --questions"),
        ("CHECKPOINT --prompt Hi --folder FOLDER", "missing option '--out'"),
        ("CHECKPOINT --prompt Hi --folder FOLDER --image FILE --out OUT", "not both"),
        ("CHECKPOINT --prompt Hi --questions FILE --out OUT", "give no --prompt"),
        ("CHECKPOINT --prompt Hi --temperature nan", "temperature"),
        ("CHECKPOINT --prompt Hi --top-p 0", "top"),
        ("CHECKPOINT --prompt Hi --stop=", "stop"),
        ("CHECKPOINT --prompt Hi --system=", "--system is empty"),
        ("CHECKPOINT --prompt Hi --keep-visual-tokens 0", "share of visual tokens to keep is 0"),
        ("CHECKPOINT --prompt Hi --keep-visual-tokens nan", "visual tokens to keep is nan"),
        ("CHECKPOINT --prompt Hi --keep-cache 1.5", "share of cache to keep is 1.5"),
        ("CHECKPOINT --prompt Hi --keep-cache half", "invalid value for '--keep-cache'"),
        ("CHECKPOINT --prompt Hi --image NOTHING.png", ".metadata is damaged"),
        ("CHECKPOINT --prompt Hi --folder EMPTY --out OUT", "no image in it"),
        ("CHECKPOINT --prompt Hi --folder NOTHING --out OUT", "no such folder"),
        ("CHECKPOINT --questions NOTHING --out OUT", "NOTHING: No such file"),
        ("CHECKPOINT --questions FILE --out OUT", "of 1 question none can be asked"),
        ("CHECKPOINT --questions ASKED.jsonl --out ASKED.jsonl", "is the file of --questions"),
        ("CHECKPOINT --questions UNKNOWN.jsonl --out OUT", "line 1: 'promt' is not read"),
        ("CHECKPOINT --questions ASKED.jsonl --out FOLDER", "--out FOLDER: is a folder"),
        ("CHECKPOINT --questions ASKED.jsonl --out /proc/a", "cannot be written"),
        ("CHECKPOINT --questions ASKED.jsonl --out OUT", ".metadata is damaged"),
    ],
    "serve": [
        ("NOTHING --port 0", "no such checkpoint"),
        ("FILE --port 0", "FILE: a file: expected a checkpoint"),
        ("CHECKPOINT --port 0", ".metadata is damaged"),
        ("CHECKPOINT --port 99999", "invalid value for '--port'"),
        ("CHECKPOINT --max-queue 0", "invalid value for '--max-queue'"),
        ("CHECKPOINT --host no.such.host.invalid", "--host no.such.host.invalid: "),
        ("CHECKPOINT --host 0.0.0.0", "--host 0.0.0.0: other machines could ask"),
        ("CHECKPOINT --host 192.0.2.1 --api-key k", "--host 192.0.2.1: not an address of this"),
        ("NVLM_API_KEY= CHECKPOINT", "NVLM_API_KEY"),
        ("CHECKPOINT --api-key \xe9", "must be printable ASCII"),
        ("RANK= CHECKPOINT", "RANK is empty"),
    ],
    "evaluate": [
        ("NOTHING --data-root EMPTY --out RUN/a", "no such checkpoint"),
        ("CHECKPOINT --data-root EMPTY --out RUN/a", ".metadata is damaged"),
        ("CHECKPOINT --data-root EMPTY --out FOLDER", "error: "),
        ("MASTER_PORT= WORLD_SIZE=2 RANK=1 NOTHING --data-root EMPTY --out RUN/a", "MASTER_ADDR"),
        ("NOTHING --out RUN/a", "give --data-root DIR"),
        ("NOTHING --out RUN/a --data-root EMPTY --keep-cache 0", "share of cache to keep is 0"),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY --keep-visual-tokens 1.5", "is 1.5"),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY --keep-cache nan", "keep is nan"),
        ("NOTHING --out RUN/a --data-root EMPTY --shots 4", "--shots goes with --suite"),
        ("NOTHING --out RUN/a --data-root EMPTY --shots 0", "--shots goes with --suite"),
        ("NOTHING --out RUN --suite realworldqa", "--suite needs --data DIR"),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY", "no such checkpoint"),
        ("NOTHING --out RUN --suite none --data EMPTY", "no benchmark 'none'; there are "),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY --shots 3", "expected 0, 4 or 8"),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY --shots 4", "no split to draw"),
        ("NOTHING --out RUN --suite realworldqa --data EMPTY --limit 0", "'--limit'"),
        ("CHECKPOINT --out RUN --suite realworldqa --data EMPTY", ".metadata is damaged"),
    ],
    "evaluate benchmarks": [("EMPTY", "unexpected extra argument")],
    "evaluate compare": [
        ("NOTHING", "missing argument 'B'"),
        ("NOTHING EMPTY", "holds no evaluation"),
        ("FILE FILE --examples x", "'--examples'"),
    ],
    "evaluate mir": [
        ("NOTHING --data-root EMPTY --out RUN", "no such checkpoint"),
        ("NOTHING --out RUN", "missing option '--data-root'"),
        ("NOTHING --data-root EMPTY --out RUN --samples 0", "'--samples'"),
        ("CHECKPOINT --data-root EMPTY --out RUN", ".metadata is damaged"),
    ],
    "evaluate rescore": [
        ("NOTHING", "holds no evaluation"),
        ("FILE", "holds no evaluation"),
        ("EMPTY", "holds no evaluation"),
    ],
    "demo": [
        ("--root FILE", "--root FILE: is a file"),
        ("--root /proc/nvlm", "cannot be written"),
    ],
    "data build-demo": [
        ("FILE", "DIR FILE: is a file"),
        ("/proc/nvlm", "cannot be written"),
    ],
    "data import": [
        ("NOTHING OUT --format llava-json", "NOTHING"),
        ("BYTES.json OUT --format llava-json", "BYTES.json"),
        ("FOLDER OUT --format llava-json", "FOLDER"),
        ("FILE OUT --format parquet", "FILE"),
        ("FILE OUT --format word", "word"),
        ("BYTES.json FILE --format llava-json", "FILE: is a file"),
        ("BYTES.json /proc/nvlm --format llava-json", "cannot be written"),
    ],
    "data levels": [
        ("NOTHING OUT --clip FOLDER", "NOTHING: no folder with shards"),
        ("FOLDER OUT --clip FOLDER", "FOLDER: no folder with shards"),
        ("FOLDER OUT --clip FOLDER --levels 1", "--levels"),
    ],
    "data index": [
        ("FOLDER", "is not a YAML file"),
        ("SFT data.root=EMPTY run.dir=RUN", "no .tar files"),
        ("SFT data.root=SHARDS data.index_dir=FILE", "FILE"),
    ],
    "data order": [
        ("SFT data.root=EMPTY run.dir=RUN", "no .tar files"),
        ("STAGES", "say which one: --stage"),
    ],
    "data stats": [("SFT data.root=EMPTY run.dir=RUN --json", "no .tar files")],
    "data preview": [
        ("SFT data.root=EMPTY run.dir=RUN", "no .tar files"),
        ("STAGES data.root=EMPTY run.dir=RUN", "say which one: --stage"),
        ("SFT data.root=EMPTY run.dir=RUN --out FOLDER", "--out FOLDER: is a folder"),
        ("SFT data.root=EMPTY run.dir=RUN --out /proc/p.html", "cannot be written"),
        ("SFT data.root=EMPTY run.dir=RUN --out /dev/null", "is a device"),
    ],
    "convert from-hf": [
        ("OUT --config SFT --nvlm NOTHING", "NOTHING"),
        ("OUT --config SFT", "--vision and --language"),
        ("FILE/below --config SFT --nvlm FOLDER", "is a file"),
        ("OUT --config SFT --nvlm FOLDER", "config.json"),
    ],
    "convert to-hf": [
        ("NOTHING OUT", "no such checkpoint"),
        ("CHECKPOINT OUT", ".metadata is damaged"),
        ("CHECKPOINT FILE", "FILE"),
        ("CHECKPOINT /proc/nvlm", "cannot be written"),
    ],
    "convert merge": [
        ("NOTHING OUT", "no such checkpoint"),
        ("CHECKPOINT OUT", ".metadata is damaged"),
        ("CHECKPOINT FILE", "FILE"),
    ],
    "convert upcycle": [
        ("NOTHING OUT --num-experts 4", "no such checkpoint"),
        ("CHECKPOINT OUT --num-experts 4", ".metadata is damaged"),
        ("CHECKPOINT OUT --num-experts 1", "--num-experts"),
    ],
    "convert adapters": [
        ("NOTHING OUT", "no such checkpoint"),
        ("CHECKPOINT OUT", ".metadata is damaged"),
        ("CHECKPOINT OUT --peft FOLDER", ".metadata is damaged"),
        ("CHECKPOINT FILE", "FILE"),
    ],
    "convert verify": [
        ("NOTHING CHECKPOINT", "NOTHING"),
        ("CHECKPOINT CHECKPOINT", ".metadata is damaged"),
    ],
}  # fmt: skip


def verbs(app: typer.Typer, prefix: str = "") -> Iterator[str]:
    for command in app.registered_commands:
        assert command.name is not None
        yield prefix + command.name
        if issubclass(command.cls or object, VerbOrArguments):
            yield from verbs(command.cls.verbs, f"{prefix}{command.name} ")
    for group in app.registered_groups:
        assert group.name is not None and group.typer_instance is not None
        yield from verbs(group.typer_instance, f"{prefix}{group.name} ")


def documented_codes() -> set[int]:
    table = (REPOSITORY / "docs" / "exit_codes.md").read_text()
    return {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}


def test_every_verb_has_cases():
    assert set(CASES) == set(verbs(cli.app))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    (root / "file").write_text("x")
    for name in ("folder", "empty", "checkpoint"):
        (root / name).mkdir()
    for name in ("bytes.yaml", "bytes.json"):
        (root / name).write_bytes(b'{"a": "na\xefve"}')
    (root / "asked.jsonl").write_text('{"prompt": "Hi"}\n')
    (root / "unknown.jsonl").write_text('{"promt": "Hi"}\n')
    axes = "axes: {tags: {none: {stage.tile_tags: none}}}\n"
    (root / "grid.yaml").write_text(f"base: {SFT}\n{axes}rank_by: train/loss\n")
    (root / "shards" / "train" / "s").mkdir(parents=True)
    with tarfile.open(root / "shards" / "train" / "s" / "0.tar", "w") as shard:
        shard.add(root / "file", "k.txt")
    (root / "trained").mkdir()
    (root / "trained" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    # As a copy that was cut short leaves it: its configuration and the mark of a whole one.
    checkpoint = root / "checkpoint"
    config = load_config(SFT, ["data.max_image_megapixels=1"])
    from nvlm.config import save_config

    save_config(config, checkpoint / "config.yaml")
    (checkpoint / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    (checkpoint / ".metadata").write_bytes(b"")
    return {
        "SFT": SFT,
        "STAGES": STAGES,
        "FILE": str(root / "file"),
        "FOLDER": str(root / "folder"),
        "TRAINED": str(root / "trained"),
        "EMPTY": str(root / "empty"),
        "BYTES": str(root / "bytes"),
        "NOTHING": str(root / "nothing"),
        "OUT": str(root / "out"),
        "RUN": str(root / "run"),
        "CHECKPOINT": str(checkpoint),
        "SHARDS": str(root / "shards"),
        "ASKED": str(root / "asked"),
        "GRID": str(root / "grid"),
        "UNKNOWN": str(root / "unknown"),
    }


def put_in(text: str, places: dict[str, str]) -> str:
    return re.sub("|".join(rf"\b{name}\b" for name in places), lambda m: places[m[0]], text)


@pytest.mark.parametrize("verb", CASES)
def test_causes_outside_nvlm(
    verb: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    before = set(Path(places["FILE"]).parent.rglob("*"))
    for case, expected in CASES[verb]:
        with monkeypatch.context() as patch:
            for name in VARIABLES:
                patch.delenv(name, raising=False)
            words = case.split(" ")
            while re.match(r"[A-Z_]+=", words[0]):
                patch.setenv(*words.pop(0).split("="))
            arguments = [put_in(word, places) for word in words]
            patch.setattr(sys, "argv", ["nvlm", *verb.split(), *arguments])
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                cli.main()
        code, printed = ended.value.code, capfd.readouterr().err
        assert code == 2 and code in documented_codes(), f"{case}: {code} {printed}"
        assert "Traceback" not in printed
        lines = [line for line in printed.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, f"{case}: {printed}"
        assert lines[0].startswith("error: "), f"{case}: {printed}"
        assert put_in(expected, places) in lines[0], f"{case}: {printed}"
    left = set(Path(places["FILE"]).parent.rglob("*")) - before
    assert not left, "left behind"


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = [SFT, f"run.dir={tmp_path / 'run'}", "log.wandb_project=p"]
    monkeypatch.setattr(sys, "argv", ["nvlm", "train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "log.wandb_project p: the package wandb is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Files may not grow, as on a disk that is full; /dev/full for what is printed."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(sys, "argv", ["nvlm", "train", SFT, f"run.dir={tmp_path / 'run'}"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(SystemExit, match="2"):
            cli.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"run.dir {tmp_path / 'run'}: cannot be written: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["nvlm", "config", "show", SFT])
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="2"):
            cli.main()
    with suppress(OSError):
        full.close()
    assert "error: No space left on device" in capsys.readouterr().err
