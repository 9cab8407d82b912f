"""Control characters from data are printed as escapes, everywhere."""

from __future__ import annotations

import io
import re

import pytest
from helpers.paths import REPOSITORY
from rich.table import Table

from nvlm.printing import new_console, printable, say

HOSTILE = "\x1b]0;title\x07\x1b[2Ja\rb\x9b1m\u202egnp.exe\u2066\udcff"
ESCAPED = r"\x1b]0;title\x07\x1b[2Ja\rb\x9b1m\u202egnp.exe\u2066\udcff"


def test_printable():
    assert printable(HOSTILE) == ESCAPED
    assert printable("two\nlines\tand") == r"two\nlines\tand"
    assert printable("two\nlines\tand", keep="\n\t") == "two\nlines\tand"
    for text in ("日本語 ｱ", "é\u0301", "👩\u200d👧", "نیم\u200cفاصله", "a\u00a0b", "\\x1b"):
        assert printable(text) == text


def test_say(capsys: pytest.CaptureFixture[str]):
    say(f"answer: {HOSTILE}\nnext")
    assert capsys.readouterr().out == f"answer: {ESCAPED}\nnext\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_consoles(is_terminal: bool):
    out = io.StringIO()
    console = new_console(
        file=out, force_terminal=is_terminal, width=200,
        color_system="standard" if is_terminal else None,
    )  # fmt: skip
    console.print(HOSTILE, markup=False, style="red", highlight=False)
    table = Table()
    table.add_column("key")
    table.add_row(HOSTILE)
    console.print(table)
    text = out.getvalue()
    if is_terminal:
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the console's own colours
        assert "\x1b[31m" in out.getvalue()
    assert text.count("title") == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066\udcff]", text), repr(text)


def test_everything_printed_goes_through_it():
    """But the exported modelling files, which stand alone."""
    printing = re.compile(r"(?<![\w.])print\(|(?<!\w)Console\(|sys\.std(out|err)\.write")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for folder in ("nvlm", "demo")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if "hf_files" not in path.parts and path.name not in _ITSELF
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if printing.search(line) and not line.lstrip().startswith("#")
    ]
    assert not found, "\n".join(found)


# The model card shows how to print an answer.
_ITSELF = {"printing.py", "failures.py", "model_card.py"}
