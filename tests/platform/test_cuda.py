"""What the GPU platform finds; but for the last test it needs no GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nvlm.platform import cuda

BROKEN = {
    "another torch's": ImportError("undefined symbol: _ZN3c10"),
    "without a library": OSError("libcudnn.so.9: cannot open shared object file"),
    "the wheel alone": RuntimeError("Found empty `transformer-engine` meta package installed."),
    "another version's": AssertionError(),
}


@pytest.fixture
def installed(monkeypatch):
    """Make Transformer Engine look installed, missing, or broken.

    What a broken one raises depends on how: a library that is missing, another version's, another
    torch's. Megatron-core expects the first of these alone.
    """
    monkeypatch.setitem(sys.modules, "transformer_engine", None)  # the end of the test restores it
    cuda._why_transformer_engine_is_hidden.cache_clear()

    def make(state: str) -> None:
        find, load = importlib.util.find_spec, importlib.import_module

        def find_spec(name: str, *rest):
            if name == "transformer_engine":
                return None if state == "missing" else object()
            return find(name, *rest)

        def import_module(name: str, *rest):
            if name == "transformer_engine.pytorch":
                if state in BROKEN:
                    raise BROKEN[state]
                sys.modules["transformer_engine"] = sys
                return None
            return load(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(importlib, "import_module", import_module)

    yield make
    cuda._why_transformer_engine_is_hidden.cache_clear()


@pytest.mark.parametrize("state", BROKEN)
def test_what_is_wrong_with_transformer_engine_is_found(installed, state):
    installed(state)
    why = cuda._why_transformer_engine_is_hidden()
    assert why == (str(BROKEN[state]) or "AssertionError")


@pytest.mark.parametrize("state", BROKEN)
def test_broken_transformer_engine_is_hidden_from_megatron(installed, state):
    """It is imported there for local layers too."""
    installed(state)
    cuda.activate()
    with pytest.raises(ImportError):
        import transformer_engine  # type: ignore[import-not-found]  # noqa: F401


def test_whole_transformer_engine_is_not_hidden(installed):
    installed("whole")
    cuda.activate()
    assert sys.modules["transformer_engine"] is not None
    assert not cuda._why_transformer_engine_is_hidden()


@pytest.mark.parametrize(
    "number, version", [(91002, (9, 10, 2)), (90600, (9, 6, 0)), (8907, (8, 9, 7))]
)
def test_cudnn_version(number, version):
    assert cuda._cudnn_version(number) == version


class Recorded:
    """Stands for streams, events and tensors of a GPU; says what is asked of them, in order."""

    def __init__(self, name: str, said: list[str], **parts):
        self.name, self.said, self.device = name, said, "its device"
        self.parts = parts

    def __enter__(self):
        self.said.append(f"on the {self.name}")

    def __exit__(self, *_):
        self.said.append(f"off the {self.name}")

    def __getattr__(self, method: str):
        def call(*values, **options):
            words = [getattr(v, "name", v) for v in (*values, *options.items())]
            self.said.append(f"{self.name} {method} {words}")
            return self.parts.get(method)

        return call


def test_a_copy_ahead_is_waited_for_by_the_device_and_not_by_the_host(monkeypatch):
    said: list[str] = []
    copy, event = Recorded("copy", said), Recorded("event", said)
    copying = Recorded("copying stream", said, record_event=event)
    computing = Recorded("computing stream", said)
    pinned = Recorded("pinned", said, to=copy)
    monkeypatch.setattr(cuda, "_copy_stream", lambda: copying)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: computing)
    host = Recorded("host", said, pin_memory=pinned)
    arriving = cuda.copied_ahead(host)
    assert said == [
        "on the copying stream",
        "host pin_memory []",
        "pinned to ['its device', ('non_blocking', True)]",
        "copying stream record_event []",
        "off the copying stream",
    ]
    said.clear()
    assert arriving() is copy
    # Before anything is computed with it, and before its memory may be given to another copy.
    assert said == [
        "computing stream wait_event ['event']",
        "copy record_stream ['computing stream']",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_ahead_hold_their_values():
    """Begun by another thread, behind a device that is busy; memory goes round."""
    busy = torch.ones(4096, 4096, device=cuda.device())
    with ThreadPoolExecutor(1) as thread:
        for number in range(20):
            arriving = thread.submit(cuda.copied_ahead, torch.full((1 << 20,), float(number)))
            busy = busy @ busy / 4096
            values = arriving.result()()
            assert values.device == cuda.device()
            total = values.sum()
            del values
            assert float(total) == number * (1 << 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_tensors_are_copied_without_waiting():
    pinned = cuda.pinned(torch.ones(1000))
    assert pinned.is_pinned() and cuda.pinned(pinned) is pinned
    on_device = pinned.to(cuda.device(), non_blocking=True)
    assert cuda.pinned(on_device) is on_device and float(on_device.sum()) == 1000
