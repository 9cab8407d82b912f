"""Steps are real commands: kept when finished, repeated when not, and loud when they fail."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.spawn import environment
from rich.console import Console

from demo.steps import Step, StepRunner
from nvlm.errors import NvlmError


def _step(name: str, code: str, output: str, **changes) -> Step:
    values = {"title": f"Step {name}", "program": "python", "arguments": ["-c", code]}
    return Step(name=name, outputs=[Path(output)], **(values | changes))


def _append(file: str, text: str = "x") -> str:
    return f"open({file!r}, 'a').write({text!r})"


def _runner(folder: Path) -> tuple[StepRunner, io.StringIO]:
    output = io.StringIO()
    console = Console(file=output, width=120, highlight=False)
    return StepRunner(folder, folder, {"OF_THE_DEMO": "1"}, console), output


def test_finished_steps_are_kept(tmp_path):
    steps = [
        _step("one", _append("one.txt"), "one.txt"),
        _step("two", _append("two.txt"), "two.txt"),
    ]
    for _ in range(2):
        runner, output = _runner(tmp_path)
        for step in steps:
            assert runner.run(step, "1/2") > 0
    assert (tmp_path / "one.txt").read_text() == "x"
    assert output.getvalue().count("done before") == 2


def test_a_missing_output_repeats_its_step_and_all_later_ones(tmp_path):
    names = ["one", "two", "three"]
    steps = [_step(name, _append(f"{name}.txt"), f"{name}.txt") for name in names]
    runner, _ = _runner(tmp_path)
    for step in steps:
        runner.run(step, "")
    (tmp_path / "two.txt").unlink()
    (tmp_path / "three.txt").write_text("old")
    runner, output = _runner(tmp_path)
    for step in steps:
        runner.run(step, "")
    assert [(tmp_path / f"{name}.txt").read_text() for name in names] == ["x", "x", "x"]
    assert output.getvalue().count("done before") == 1


def test_another_command_repeats_its_step(tmp_path):
    _runner(tmp_path)[0].run(_step("one", _append("one.txt", "a"), "one.txt"), "")
    _runner(tmp_path)[0].run(_step("one", _append("one.txt", "b"), "one.txt"), "")
    assert (tmp_path / "one.txt").read_text() == "b"


@pytest.mark.parametrize("resumes, content", [(True, "xx"), (False, "x")])
def test_failure_shows_the_log_and_the_next_call_goes_on(tmp_path, resumes, content):
    """The command appends to its output and fails the first time only."""
    code = (
        f"{_append('out.txt')}; import os, sys; print('lines ' * 3); print('the last words'); "
        "first = not os.path.exists('tried'); open('tried', 'w'); sys.exit(7 if first else 0)"
    )
    step = _step("one", code, "out.txt", resumes=resumes)
    runner, output = _runner(tmp_path)
    with pytest.raises(
        NvlmError, match=r"'Step one' failed with exit code 7; its log is .*one\.log"
    ):
        runner.run(step, "")
    assert "the last words" in output.getvalue()
    _runner(tmp_path)[0].run(step, "")
    assert (tmp_path / "out.txt").read_text() == content


def test_a_step_that_writes_nothing_is_an_error(tmp_path):
    runner, _ = _runner(tmp_path)
    with pytest.raises(NvlmError, match=r"did not write missing\.txt"):
        runner.run(_step("one", "pass", "missing.txt"), "")
    assert not json.loads((tmp_path / "steps.json").read_text())["one"]["finished"]


def test_progress_is_looked_at_while_the_command_runs(tmp_path):
    seen = []

    def look():
        path = tmp_path / "out.txt"
        done = len(path.read_text()) if path.exists() else 0
        seen.append(done)
        return done, 2, f"at {done}"

    code = f"import time; {_append('out.txt')}; time.sleep(1.2); {_append('out.txt')}"
    runner, output = _runner(tmp_path)
    runner.run(_step("one", code, "out.txt", look=look), "")
    assert 1 in seen, "while it ran"
    assert seen[-1] == 2
    assert "2/2" in output.getvalue()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_the_demo_ends_what_it_started(tmp_path, ending):
    """Signals reach only the demo: the command and its own children must end with it."""
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, pathlib; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        "pathlib.Path('pid.tmp').write_text(str(p.pid)); pathlib.Path('pid.tmp').rename('pid'); "
        "p.wait()"
    )
    program = (
        # A test run in the background of a shell has it ignored, and children inherit that.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from rich.console import Console; "
        "from demo.steps import Step, StepRunner; "
        f"runner = StepRunner(Path('.'), Path('.'), {{}}, Console()); "
        f"runner.run(Step('one', 'One', 'python', ['-c', {code!r}], [Path('x')]), '')"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline and demo.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    demo.send_signal(ending)
    assert demo.wait(timeout=60) != 0
    while _is_running(pid):
        assert time.monotonic() < deadline, "the command's child outlived the demo"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
