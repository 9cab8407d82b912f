"""Prompts of NVLM-X and NVLM-H: token ids, and what the decoder reads beside them.

`PromptIds.beside` is of one prompt:

    input_ids: tokens of the row beside; the placeholder's id where a tile's embeddings stand
    tiles: numbers of the prompt's tiles that stand there, in order; the others are in the prompt
    sights: [first token, end, first beside, end] of each stretch of the prompt's tokens that see
        something beside; what follows the prompt sees all of it

NVLM-X: an image in the prompt is `<Image>`, the tags of its tiles, `</Image>`; each tag sees its
tile. NVLM-H: an image is `<Image>`, the thumbnail's tag and placeholders (or those of the only
tile), `</Image>`; every other tile is beside, behind its tag. All tokens after an image's last tag
or placeholder see all that is beside of it, in both.
"""

from .prompts import IMAGE_END, IMAGE_START, PromptEncoder, Writer, tile_tags


class PromptIds(list):
    """Token ids of a prompt; `beside` is what stands beside them."""

    def __init__(self, ids, beside):
        super().__init__(ids)
        self.beside = beside


class BesidePromptEncoder(PromptEncoder):
    """A `PromptEncoder` whose prompts are `PromptIds`."""

    def _writer(self):
        return _BesideWriter(self._plain)

    def _write_image(self, writer, num_tiles):
        config = self.config
        tags = tile_tags(
            num_tiles, config.tile_tags, config.use_thumbnail, config.max_dynamic_patch
        )
        apart = config.image_boundary == "block"
        if apart:
            writer.boundary()
        writer.text(IMAGE_START)
        if config.fusion == "hybrid":
            if config.image_boundary == "separate":
                writer.boundary()
            writer.text(tags[-1])
            writer.control(self.image_id, repeat=self.num_image_token)
            for tag in tags[:-1]:
                writer.put_beside(tag, self.image_id, self.num_image_token)
        else:
            writer.boundary()
            for tag in tags:
                seen = writer.put_beside("", self.image_id, self.num_image_token)
                writer.see(*seen, tag)
        writer.end_image(num_tiles, config.fusion == "hybrid")
        writer.text(IMAGE_END)
        if apart:
            writer.boundary()
            writer.text("\n")
            writer.boundary()


class _BesideWriter(Writer):
    """Also collects what stands beside the tokens, and what they see of it."""

    def __init__(self, plain):
        super().__init__(plain)
        self.beside = {"input_ids": [], "tiles": [], "sights": []}
        self.num_tiles = 0
        self.stretch = 0  # where the tokens begin of which nothing is noted yet
        self.seen = 0

    def put_beside(self, tag, image_id, repeat):
        """A tile's tokens after all others: (first, end)."""
        ids = self.beside["input_ids"]
        first = len(ids)
        if tag:
            ids += self.after_control.encode(tag, add_special_tokens=False).ids
        ids += [image_id] * repeat
        return first, len(ids)

    def see(self, first, end, text):
        """Write `text`, which sees that range alone."""
        self._end_stretch()
        self.text(text)
        self.boundary()
        self._note(first, end)

    def end_image(self, num_tiles, has_one_inside):
        """The image's last tag or placeholder is written: what follows sees what is beside."""
        self._end_stretch()
        self.seen = len(self.beside["input_ids"])
        num_beside = num_tiles - has_one_inside
        self.beside["tiles"] += range(self.num_tiles, self.num_tiles + num_beside)
        self.num_tiles += num_tiles

    def finish(self):
        self._end_stretch()
        return PromptIds(self.ids, self.beside)

    def _end_stretch(self):
        self.boundary()
        self._note(0, self.seen)

    def _note(self, first, end):
        sights, start = self.beside["sights"], self.stretch
        self.stretch = len(self.ids)
        if first == end or start == self.stretch:
            return
        if sights and sights[-1][1:] == [start, first, end]:
            start = sights.pop()[0]
        sights.append([start, self.stretch, first, end])
