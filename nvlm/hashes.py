"""Fingerprints: the same for the same content, on every machine and in every run."""

from __future__ import annotations

import hashlib
import json


def hash_text(text: str) -> str:
    """SHA-256 in hexadecimal digits; half characters count as their escapes."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def hash_json(value: object) -> str:
    """SHA-256 of a JSON value in hexadecimal digits; the order of keys does not count."""
    return hash_text(json.dumps(value, sort_keys=True))
