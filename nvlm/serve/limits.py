"""What one request may cost, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The defaults are the command line's."""

    max_image_megapixels: float  # of a request's images together: what is decoded at a time
    max_request_mb: float = 50.0  # of a body; 1 MB is 1,000,000 bytes
    max_images: int = 16  # in a request, earlier turns included
    max_queue: int = 64  # requests at once: read, waiting and being answered
    timeout_seconds: float = 600.0  # from a request's first byte to its answer's last
    max_new_tokens: int = 1024  # of an answer

    @property
    def max_request_bytes(self) -> int:
        return int(self.max_request_mb * 1e6)
