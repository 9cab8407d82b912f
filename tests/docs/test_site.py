"""The documentation as a site: it builds without a broken link and shows what the files say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from markdown_it import MarkdownIt

# Pages that have other names on the site, as in docs/site_hooks.py.
MOVED = {
    "README.md": "index",
    "docs/README.md": "pages",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
}
DOCUMENTS = sorted({*MOVED, *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))})
COUNTED = ("table", "tr", "ul", "ol", "li", "pre", "h2", "h3", "strong", "img")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strict: links to missing pages or headings fail, and pages that the navigation leaves out."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Elements(HTMLParser):
    """Counts elements, and collects what the page makes a browser load."""

    def __init__(self, html: str):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loaded.append(given.get("href") or "")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_page_shows_what_the_file_says(document: str, site: Path):
    """The site's Markdown is stricter about lists than the repository's: none is lost in it."""
    text = (REPOSITORY / document).read_text()
    expected = Elements(MarkdownIt("commonmark").enable("table").render(text)).counts
    html = (site / f"{MOVED.get(document, Path(document).stem)}.html").read_text()
    (article,) = re.findall(r"<article.*?</article>", html, re.DOTALL)
    found = Elements(article).counts
    assert {tag: found[tag] for tag in COUNTED} == {tag: expected[tag] for tag in COUNTED}


def test_pages_load_nothing_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(DOCUMENTS)
    for page in pages:
        loaded = Elements(page.read_text()).loaded
        assert loaded
        assert not [source for source in loaded if "//" in source], page
