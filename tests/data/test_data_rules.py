"""docs/data_rules.md says what the hostile corpus shows; run this file to rewrite its tables."""

from __future__ import annotations

from helpers import hostile_images, hostile_text
from helpers.paths import REPOSITORY

from nvlm.data.samples.repairs import REPAIRS

DOCUMENT = REPOSITORY / "docs" / "data_rules.md"
_BEGIN, _END = "<!-- {} begins -->\n", "<!-- {} ends -->\n"
CORPORA = {"text corpus": hostile_text.CASES, "image corpus": hostile_images.CASES}


def with_tables(document: str) -> str:
    """The document with the table of each corpus between its marks."""
    for name, cases in CORPORA.items():
        before, rest = document.split(_BEGIN.format(name))
        _, after = rest.split(_END.format(name))
        rows = ["| what | outcome | rule |", "|---|---|---|"]
        rows += [f"| {case.name} | {_outcome(case.outcome)} | {case.rule} |" for case in cases]
        table = "\n".join(rows) + "\n"
        document = before + _BEGIN.format(name) + table + _END.format(name) + after
    return document


def _outcome(outcome: str) -> str:
    return outcome if outcome in ("read", "repaired") else f"skipped as `{outcome}`"


def test_tables_are_those_of_the_corpora():
    document = DOCUMENT.read_text()
    assert document == with_tables(document), "write it: python tests/data/test_data_rules.py"


def test_every_repair_is_explained():
    document = DOCUMENT.read_text()
    for name, meaning in REPAIRS.items():
        assert f"\n| `{name}` | {meaning} |" in document


def test_every_reason_is_explained():
    document = DOCUMENT.read_text()
    reasons = {case.outcome for cases in CORPORA.values() for case in cases}
    for reason in {*reasons, "read", "too_long"} - {"repaired"}:
        assert f"\n| `{reason}` | " in document, f"docs/data_rules.md does not explain {reason}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
