"""The page at `/`: one file, whose style and script are allowed by their hashes and no others."""

from __future__ import annotations

import base64
import hashlib
import re

from nvlm.views.pages import page_environment


def chat_page() -> tuple[str, str]:
    """(HTML, its Content-Security-Policy): it can load nothing and ask only its own server."""
    html = page_environment("nvlm.serve").get_template("chat.html").render()
    style, script = _hash_of("style", html), _hash_of("script", html)
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash_of(element: str, html: str) -> str:
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
