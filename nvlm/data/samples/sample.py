"""The words for a sample's content: its messages, the mark of an image, what is wrong with it."""

from __future__ import annotations

from nvlm.errors import DataError

IMAGE_MARK = "<image>"
# A conversation: `{"role": "system" | "user" | "assistant", "content": text}` per turn; a document:
# `{"role": "document", "content": text}` per part.
Messages = list[dict[str, str]]


class SampleError(DataError):
    """One sample cannot be used; training goes on without it.

    `reason` is a short word to count by; the message is the detail.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)
