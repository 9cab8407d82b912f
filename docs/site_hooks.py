"""Hooks of `mkdocs build`: pages of the repository outside docs/, and links between the two."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
# File of the repository -> page of the site.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        if known := files.get_file_from_path(source.removeprefix("docs/")):
            files.remove(known)
        content = (REPOSITORY / source).read_text()
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they stand in the repository become those of the site.

    A link to a file that is no page, such as a module, keeps its words only.
    """
    sources = {name: source for source, name in PAGES.items()}
    uri = page.file.src_uri
    folder = Path(sources.get(uri, f"docs/{uri}")).parent

    def moved(match: re.Match) -> str:
        picture, words, target, anchor = match.groups()
        path = os.path.normpath(folder / target)
        if path in PAGES:
            name = PAGES[path]
        elif path.startswith("docs/"):
            name = os.path.relpath(path.removeprefix("docs/"), Path(uri).parent)
        elif (REPOSITORY / path).exists():
            return words
        else:
            raise PluginError(f"{folder / uri}: no file {path}")
        return f"{picture}[{words}]({name}{anchor or ''})"

    return _LINK.sub(moved, markdown)
