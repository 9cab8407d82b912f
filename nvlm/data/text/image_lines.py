"""Where images stand in a user turn with `stage.image_boundary: block`: each on a line of its own.

vLLM finds an image by the tokens of `<image>` and one newline. It finds none where the mark does
not begin a line, or where further newlines follow, since a tokenizer makes one token of `>` and all
the newlines after it. So a line is broken before a mark that does not begin one, and after a mark
there is one newline, whatever number was there. All other text stays as it is. The chat template of
an export does the same (nvlm/convert/export/tokenizer.py), and so does its `chat`
(nvlm/convert/hf_files/prompts.py).
"""

from __future__ import annotations

from nvlm.data.samples.sample import IMAGE_MARK

# What a tokenizer joins to the `>` before it.
_LINE_ENDS = "\r\n"


def texts_between_images(content: str) -> list[str]:
    """The texts before, between and after the images of a user turn's content.

    An image, then one newline, stand between each two of them. Every text but the last is empty
    or ends with a newline; every one but the first begins with something else.
    """
    first, *others = content.split(IMAGE_MARK)
    texts = [first, *(text.lstrip(_LINE_ENDS) for text in others)]
    return [*(_ended(text) for text in texts[:-1]), texts[-1]]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
