"""docs/compatibility.md says what the last runs of the clients gave, and nothing else."""

from __future__ import annotations

from clients import page
from clients.__main__ import all_clients


def test_page_follows_from_the_results():
    assert page.PAGE.read_text() == page.text_of(page.kept())


def test_results_are_those_of_clients():
    names = [client.name.replace(" ", "-") for client in all_clients()]
    assert len(set(names)) == len(names)
    assert {path.stem for path in page.RESULTS.glob("*.json")} <= set(names)
