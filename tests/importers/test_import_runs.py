"""Imports interrupted and divided among processes; their shards in the hands of others."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset
from helpers.paths import REPOSITORY
from helpers.shard_writing import draw_image
from rich.console import Console

from nvlm.data.index.source_index import open_indexes
from nvlm.errors import DataError
from nvlm.importers import report
from nvlm.importers import run as run_module
from nvlm.importers.formats import ImportOptions
from nvlm.importers.run import import_source

NUM_SAMPLES = 50


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA's format; every seventh image is missing."""
    folder = tmp_path_factory.mktemp("llava")
    entries = []
    for number in range(NUM_SAMPLES):
        if number % 7:
            data = draw_image(50 + number, 40, number, "JPEG")
            (folder / f"{number}.jpg").write_bytes(data)
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"Number {number}."},
        ]
        entries.append({"id": f"n{number}", "image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


def options(source: Path, **changes) -> ImportOptions:
    values = {"samples_per_shard": 6, "name": "numbers", **changes}
    return ImportOptions("llava-json", source, **values)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    import_source(options(source), out)
    return out / "train" / "numbers"


def same_but_for_the_place(found: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    summaries = [json.loads(files.pop("import.json")) for files in (found, expected)]
    for summary in summaries:
        summary.pop("folder")
    return found == expected and summaries[0] == summaries[1]


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_writes_the_same_bytes(source, whole, tmp_path, workers: int):
    import_source(options(source, num_workers=workers), tmp_path)
    found = contents(tmp_path / "train" / "numbers")
    assert len(found) == 9 + 2
    assert same_but_for_the_place(found, contents(whole))
    assert not list((tmp_path / "train").glob(".*"))


def test_shards_are_bounded_in_bytes_too(source, tmp_path):
    bound = 21_000
    import_source(options(source, samples_per_shard=1000, shard_bytes=bound), tmp_path)
    shards = sorted((tmp_path / "train" / "numbers").glob("*.tar"))
    assert len(shards) > 3
    assert all(bound - 10_240 < shard.stat().st_size <= bound for shard in shards[:-1])
    # A sample that is larger stands alone.
    import_source(options(source, name="alone", shard_bytes=1), tmp_path)
    assert len(list((tmp_path / "train" / "alone").glob("*.tar"))) == NUM_SAMPLES - 8


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_it_goes_on(source, whole, tmp_path, workers: int):
    """SIGKILL in the middle of a unit; what was done is not read again, and no process is left that
    would write beside the next run."""
    context = multiprocessing.get_context("fork")

    def slowly() -> None:
        count = run_module._count_one

        def slow(num_read) -> None:
            count(num_read)
            time.sleep(0.02)

        run_module._count_one = slow
        import_source(options(source, num_workers=workers), tmp_path)

    process = context.Process(target=slowly)
    process.start()
    work = tmp_path / "train" / ".numbers.import"
    while not (work / ".units" / "000002.json").exists():
        assert process.is_alive()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == (workers if workers > 1 else 0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(map(runs, children)):
        time.sleep(0.01)
    assert not (tmp_path / "train" / "numbers").exists()
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.tar")}
    assert 3 <= len(before) < 9

    steps = []
    import_source(options(source), tmp_path, lambda *numbers: steps.append(numbers))
    assert steps[0][0] >= 3
    assert steps[0][2] >= 18
    assert steps[-1] == (9, 9, NUM_SAMPLES, NUM_SAMPLES)
    folder = tmp_path / "train" / "numbers"
    assert same_but_for_the_place(contents(folder), contents(whole))
    unchanged = {name for name, t in before.items() if (folder / name).stat().st_mtime_ns == t}
    assert len(unchanged) >= 3


def runs(process: str) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_is_killed_is_named_as_the_cause(source, tmp_path, monkeypatch):
    def killed(_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(run_module, "_count_one", killed)
    with pytest.raises(DataError, match=r"a process that wrote shards was killed.*same command"):
        import_source(options(source, num_workers=2), tmp_path)


def test_a_full_disk_ends_an_import_that_then_goes_on(source, whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"\.import: the import cannot continue: .*too la"):
            import_source(options(source), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "train" / "numbers").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    import_source(options(source), tmp_path)
    assert same_but_for_the_place(contents(tmp_path / "train" / "numbers"), contents(whole))


def test_pictures_added_to_a_folder_are_noticed(source, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number in range(1, 4):
        (folder / "deep" / f"{number}.jpg").symlink_to(source.parent / f"{number}.jpg")
        (folder / "deep" / f"{number}.txt").write_text("A number.")
    given = ImportOptions("captions-folder", folder, name="it", samples_per_shard=1)
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_summarise", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_source(given, tmp_path / "out")
    (folder / "deep" / "1.jpg").rename(folder / "deep" / "0.jpg")
    with pytest.raises(DataError, match="interrupted import with other files; give the same"):
        import_source(given, tmp_path / "out")


def test_places_that_cannot_be_written_to(source, tmp_path):
    with pytest.raises(DataError, match=r"lies inside .*write to another OUT"):
        import_source(ImportOptions("captions-folder", source.parent), source.parent / "out")
    with pytest.raises(DataError, match="--source 'a/b': expected a name such as train"):
        import_source(options(source, name="a/b"), tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/train/\.numbers\.import: the import cannot cont"):
        import_source(options(source), tmp_path / "file")


def test_going_on_with_other_data_is_refused(source, tmp_path):
    work = tmp_path / "train" / ".numbers.import"
    (work / ".units").mkdir(parents=True)
    plan = {"version": 1, "options": {}, "files": "", "num_units": 3}
    (work / ".units" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(
        DataError, match="interrupted import with other files and num_units and opt"
    ):
        import_source(options(source), tmp_path)


def test_what_exists_is_not_written_over(source, whole, tmp_path):
    with pytest.raises(DataError, match="numbers exists; remove it, or give another --source"):
        import_source(options(source), whole.parents[1])


def test_an_error_of_ours_is_not_swallowed(source, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("nvlm.importers.llava_json.make_record", broken)
    for workers in (1, 2):
        with pytest.raises(ZeroDivisionError, match="ours"):
            import_source(options(source, num_workers=workers), tmp_path)


def test_the_bar_shows_samples_per_second_and_the_time_left(source, tmp_path, monkeypatch):
    shown = io.StringIO()
    terminal = functools.partial(Console, file=shown, force_terminal=True, width=140)
    monkeypatch.setattr(report, "new_console", terminal)
    report.import_with_progress(options(source), tmp_path)
    line = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.getvalue().replace("\r", "\n"))
    # Share, rate, time spent, time left.
    assert re.search(r"importing .* 50/50 +100% +[\d,]+ samples/s 0:00:\d\d 0:00:00", line)


def test_the_command_shows_counts_and_reasons(source, tmp_path):
    command = [sys.executable, "-m", "nvlm", "data", "import", "--format", "llava-json", source]
    again = [*command, tmp_path, "--source", "numbers", "--workers", "2"]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rejected 8: missing_image" in done.stdout
    assert "rejected.jsonl" in done.stdout
    lines = (tmp_path / "train" / "numbers" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"entry {n}" for n in range(0, 50, 7)]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_plain_webdataset_opens_the_shards(source, whole):
    shards = [str(path) for path in sorted(whole.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [
        f"n{number}" for number in range(NUM_SAMPLES) if number % 7
    ]
    for sample in samples:
        number = sample["__key__"][1:]
        assert sample["0.jpg"] == (source.parent / f"{number}.jpg").read_bytes()
        assert json.loads(sample["json"])["messages"][1]["content"] == f"Number {number}."


def test_energon_opens_the_shards(source, whole, make_config, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)  # Energon writes into the folder
    script = REPOSITORY / "tests" / "helpers" / "open_in_energon.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samples = json.loads(done.stdout.splitlines()[-1])
    assert sorted(samples) == sorted(f"n{number}" for number in range(NUM_SAMPLES) if number % 7)
    for key, (content, sizes) in samples.items():
        assert content["messages"][1]["content"] == f"Number {key[1:]}."
        assert sizes == [(source.parent / f"{key[1:]}.jpg").stat().st_size]
    # And the folder as Energon has prepared it is a source of ours, where it is.
    config = make_config(
        "data.split=val", f"data.blend={{numbers: {{path: {folder}}}}}", f"run.dir={tmp_path}"
    )
    (index,) = open_indexes(config)
    assert sorted(index.key(row) for row in range(len(index))) == sorted(samples)
    assert not index.rejected
