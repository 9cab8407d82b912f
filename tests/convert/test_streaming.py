"""Conversion holds a few rows of a tensor, leaves whole folders or none, and needs no model."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from helpers import measure_memory, small_folders, spawn
from helpers.paths import REPOSITORY
from safetensors.torch import save_file

from nvlm.convert import convert_from_hf, convert_to_hf
from nvlm.convert.blocks import all_finite, row_blocks
from nvlm.convert.hf.safetensors_file import SafetensorsOutput
from nvlm.convert.megatron.entries import is_stack, source_rows
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.rules import to_megatron
from nvlm.convert.session import Processes
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.convert.verify import verify
from nvlm.errors import CheckpointError

HELPERS = REPOSITORY / "tests" / "helpers"


def _run(script: str, *arguments: str | Path, processes: int = 1) -> None:
    log = Path(arguments[-1]).with_suffix(".log")
    spawn.run_program_or_fail(processes, HELPERS / script, *arguments, log=log)


@pytest.mark.slow
def test_memory_is_a_few_blocks_and_a_killed_conversion_leaves_nothing_whole(tmp_path):
    """Of a model of 200 MB, whose largest tensor has 100 MB."""
    _run("measure_memory.py", tmp_path)
    # Started from nothing: what others have imported would count as its own.
    process = subprocess.Popen(
        [sys.executable, HELPERS / "measure_memory.py", tmp_path],
        env=spawn.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        measured = json.loads(process.stdout.readline())
        killed = tmp_path / "killed"
        while not list(tmp_path.glob(".killed.writing/*.distcp")):
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        spawn.kill(process)
    # A model in memory is twice the largest tensor here, and a tensor in memory is one.
    for direction in ("from_hf", "to_hf"):
        assert measured[direction] < 0.7 * measured["largest"], measured
    if "survived" not in process.stdout.read():
        assert not killed.exists()
        assert (tmp_path / ".killed.writing").exists()
    assert verify(tmp_path / "language", tmp_path / "checkpoint").is_equal
    assert verify(tmp_path / "checkpoint", tmp_path / "export").is_equal

    config = small_folders.convert_config(*measure_memory.LARGE)
    convert_from_hf(tmp_path / "vision", tmp_path / "language", config, killed)
    assert not (tmp_path / ".killed.writing").exists()
    assert verify(tmp_path / "checkpoint", killed).is_equal


@pytest.mark.parallel
def test_two_processes_write_what_one_writes(converted, tmp_path, measure):
    out = tmp_path / "checkpoint", tmp_path / "export"
    folders = (converted.vision, converted.language, *out)
    _run("convert_in_processes.py", "convert", *folders, processes=2)
    files = {file.name for file in converted.export.iterdir()}
    assert files == {file.name for file in out[1].iterdir()}
    for file in converted.export.glob("*.safetensors"):
        assert (out[1] / file.name).read_bytes() == file.read_bytes(), file.name
    report = verify(converted.checkpoint, out[0])
    measure("tensors that differ, two processes", "one process", len(report.differences), bound=0)
    assert report.num_equal == len(small_folders.read_tensors(converted.export))


@pytest.mark.parallel
def test_megatron_core_opens_it_at_tp2_pp2_and_what_that_writes_is_read(
    converted, tmp_path, measure
):
    """Megatron-core's loader and writer are the truth for our writer and reader."""
    rewritten = tmp_path / "rewritten"
    _run("convert_in_processes.py", "rewrite", converted.checkpoint, rewritten, processes=4)
    ours, theirs = CheckpointReader(converted.checkpoint), CheckpointReader(rewritten)
    assert ours.keys() == theirs.keys()
    for key in ours.keys():  # noqa: SIM118 - a reader is no mapping
        assert ours.shape(key) == theirs.shape(key)
        assert ours.dtype(key) == theirs.dtype(key)
    report = verify(converted.checkpoint, rewritten)
    what = "tensors that differ, checkpoint loaded and saved at TP2 x PP2"
    measure(what, "the converted checkpoint", len(report.differences), bound=0)
    export = convert_to_hf(rewritten, tmp_path / "export", shard_size="2MB")
    for file in converted.export.glob("*.safetensors"):
        assert (export / file.name).read_bytes() == file.read_bytes(), file.name


def test_rows_of_a_stack_are_its_sources(converted):
    """What is read by rows equals what the rule makes of whole tensors."""
    tensors = small_folders.read_tensors(converted.export)
    stacks = [rule for rule in export_rules(converted.config.model) if is_stack(rule)]
    assert any(len(rule.sources) > 1 for rule in stacks)
    for rule in stacks:
        place = next(rule.parameter.places())
        whole = to_megatron(rule, place, tensors.__getitem__)
        for name, (_, first, last) in zip(rule.names(place), source_rows(rule), strict=True):
            assert torch.equal(whole[first:last], tensors[name]), name


def test_files_are_those_of_the_official_library(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = {
            "b.weight": torch.randn(5, 3).to(dtype),
            "a.ünicode": torch.randn(7).to(dtype),
            "b.bias": torch.randn(2, 1, 4).to(dtype),
        }
        save_file(tensors, tmp_path / "official", metadata={"format": "pt"})
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with SafetensorsOutput(tmp_path / "ours", shapes, dtype) as output:
            for name, tensor in tensors.items():
                data = memoryview(tensor.flatten().view(torch.uint8).numpy())
                output.write(name, 4, data[4:])
                output.write(name, 0, data[:4])
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "official").read_bytes()


@contextmanager
def _file_size_limit(num_bytes: int):
    """Writing beyond it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fails_in_the_middle_leaves_nothing(converted, tmp_path):
    out = tmp_path / "out"
    with _file_size_limit(2_000_000):
        with pytest.raises(CheckpointError, match="out: cannot be written: File too large"):
            convert_from_hf(converted.vision, converted.language, converted.config, out)
        with pytest.raises(CheckpointError, match="out: cannot be written: File too large"):
            convert_to_hf(converted.checkpoint, out)
    assert not list(tmp_path.iterdir())


def test_leftovers_are_removed_and_an_earlier_checkpoint_stays_until_the_end(converted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(converted.checkpoint, out)
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "half.distcp").write_bytes(b"half")
    with _file_size_limit(2_000_000), pytest.raises(CheckpointError):
        convert_from_hf(converted.vision, converted.language, converted.config, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert verify(out, converted.checkpoint).is_equal


def test_every_item_is_in_one_share():
    items = list(range(1, 40))
    for count in (1, 2, 3, 8, 100):
        shares = [Processes(rank, count).share(items, lambda item: item) for rank in range(count)]
        assert list(chain.from_iterable(shares)) == items
        most = max(map(sum, shares))
        assert most <= sum(items) / count + max(items)


def test_row_blocks_cover_all_rows_once():
    for shape in ((1,), (5_000_000,), (3000, 4096), (2, 30_000_000)):
        blocks = row_blocks(shape, torch.float32)
        assert blocks[0][0] == 0
        assert blocks[-1][1] == shape[0]
        assert all(left[1] == right[0] for left, right in pairwise(blocks))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_is_found(value, dtype):
    tensor = torch.ones(1003, dtype=dtype)
    assert all_finite(tensor)
    for place in (0, 500, 1002):
        changed = tensor.clone()
        changed[place] = value
        assert not all_finite(changed)
