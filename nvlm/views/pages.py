"""Pages: one HTML file each that needs nothing else, made from a template that only shows text.

Templates are jinja2's, in the folder `templates` of a package. Whatever a template prints is
escaped, and invisible characters are spelled out: no text of a sample or a model can become part
of a page. What is markup by intent is written in a template, never in Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nvlm.files import write_text
from nvlm.views.visible import visible


def page_environment(package: str) -> jinja2.Environment:
    """Templates of `package`. A name that a template does not get is an error, not an empty text.

    Lines with nothing but a statement leave no line in the page.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_page(path: Path, package: str, template: str, **values: Any) -> Path:
    """Write the page that `template` of `package` makes of `values` to `path`.

    It is written beside and renamed, so that a reader never sees half of it.
    """
    page = page_environment(package).get_template(template).render(values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _visible_text(value: Any) -> Any:
    """What the templates themselves have made stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
