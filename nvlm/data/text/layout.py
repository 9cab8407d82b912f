"""The token layout of a sample, all of it (reference for the exported model's prompt code too).

A conversation is written in the tokenizer's chat format (chat_format.py), here ChatML for an
example; each mark `<image>` of a user turn becomes

    <Image> {tag of tile 1} {placeholder x tokens per tile} {tag of tile 2} ... </Image>

Control tokens and placeholders are ids. The text between two of them is tokenised as one string,
with these exceptions: the content of an assistant turn starts a new string, because generation
starts there; with `image_boundary: block` an image stands on a line of its own (image_lines.py),
and its block, the newline after it, and the text before and after are strings of their own; with
`image_boundary: separate` the first tag of an image is a string of its own.

A document has no roles: what begins a sequence, its parts one after another, and what ends a
document, `<|im_end|>`. Each part is a string of its
own, and so is what surrounds its images, because of the two only the text is trained.

With `stage.tile_tags: soft` a tag has no text, and ids of its own instead. With `stage.alignment`
an id of that kind stands behind what begins a sequence, where the first question has an image, or a
document begins with one: of turns that are kept, the first always is one.

With `model.fusion: hybrid` that block has the thumbnail alone; with `cross_attention` it has tags
without placeholders, `<Image>` and each tag strings of their own, because a tag sees another tile
than the one before it does. What the decoder reads beside its tokens is in beside.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nvlm.data.samples.conversations import begins_with_image, count_image_marks
from nvlm.data.samples.sample import IMAGE_MARK, Messages
from nvlm.data.text.chat import ChatTokenizer
from nvlm.data.text.chat_format import WrittenTurn, with_system_message, written_turns
from nvlm.data.text.image_lines import texts_between_images
from nvlm.data.text.pieces import Key, Piece
from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, VisualLayout

IMAGE_START = "<Image>"
IMAGE_END = "</Image>"


@dataclass(frozen=True)
class SampleLayout:
    """Conversations and documents as pieces: strings to tokenise, and ids as they are."""

    tokenizer: ChatTokenizer
    visual: VisualLayout
    image_boundary: str
    system_message: str | None

    def lay_out(
        self,
        messages: Messages,
        grids: Sequence[Grid],
        untrained_turns: frozenset[int] = frozenset(),
        alignment_level: int | None = None,
    ) -> list[Piece]:
        """All of a sample; the arguments are those of `SampleEncoder.encode`."""
        num_marks = count_image_marks(messages)
        if num_marks != len(grids):
            raise DataError(f"{num_marks} {IMAGE_MARK} marks for {len(grids)} images")
        begin = self.fixed(self.tokenizer.format.begin)
        if self.visual.num_alignment_levels and begins_with_image(messages):
            token = self.visual.alignment_token(alignment_level)
            begin.append(Piece(ids=(token,), is_alignment=True))
        if messages and messages[0]["role"] == "document":
            return begin + self._document(messages, grids)
        pieces = begin
        next_image = 0
        turn = 0
        messages = with_system_message(messages, self.system_message)
        for written in written_turns(self.tokenizer.format, messages):
            frame = self.tokenizer.frame(written)
            is_answer = written.role == "assistant"
            trained = is_answer and turn not in untrained_turns
            pieces += self.fixed(frame.opening, turn)
            if is_answer:
                pieces.append(Piece(text=frame.lead, turn=turn))
                content = written.content + frame.tail
                said = Piece(text=content, turn=turn, trained=trained, varies=True, is_said=True)
                pieces.append(said)
            elif written.role == "user":
                pieces += self._user(written, grids, next_image, turn)
                pieces[-1] = replace(pieces[-1], varies=True)
                next_image += written.content.count(IMAGE_MARK)
            else:
                pieces.append(Piece(text=frame.lead + written.content + frame.tail, turn=turn))
            pieces += self.fixed(frame.closing, turn, trained)
            turn += is_answer
        return pieces

    def fixed(
        self, parts: str | list[str | int], turn: int = 0, trained: bool = False
    ) -> list[Piece]:
        """Texts and control tokens of the chat format."""
        parts = self.tokenizer.split(parts) if isinstance(parts, str) else parts
        return [
            Piece(text=part, turn=turn, trained=trained)
            if isinstance(part, str)
            else Piece(ids=(part,), turn=turn, trained=trained)
            for part in parts
        ]

    def ends(
        self, variants: Sequence[tuple[str, str]], pieces: list[Piece]
    ) -> list[tuple[Key, Key]]:
        """The last strings of each question and its answer; `pieces` has those of the first one.

        All that differs between the prompts of a sample: images come before the question.
        """
        question_goes_on, answer_goes_on = (piece.goes_on for piece in pieces if piece.varies)
        ends = []
        for question, answer in variants:
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            messages = with_system_message(turns, self.system_message)
            *_, asked, answered = written_turns(self.tokenizer.format, messages)
            end = self._user(asked, [(1, 1)] * question.count(IMAGE_MARK), 0, 0)[-1].text
            said = answered.content + self.tokenizer.frame(answered).tail
            ends.append(((end, question_goes_on), (said, answer_goes_on)))
        return ends

    def _user(
        self, written: WrittenTurn, grids: Sequence[Grid], image: int, turn: int
    ) -> list[Piece]:
        """A user turn from the text before its content to the one after; `image` is its first."""
        frame = self.tokenizer.frame(written)
        is_block = self.image_boundary == "block"
        content = written.content
        texts = texts_between_images(content) if is_block else content.split(IMAGE_MARK)
        texts[0] = frame.lead + texts[0]
        texts[-1] += frame.tail
        before, *rest = texts
        pieces: list[Piece] = []
        if is_block:
            pieces.append(Piece(text=before, turn=turn))
            for after in rest:
                pieces += self._image("", grids[image], image, turn)
                pieces += [Piece(text=text, turn=turn) for text in (IMAGE_END, "\n", after)]
                image += 1
            return pieces
        for after in rest:
            pieces += self._image(before, grids[image], image, turn)
            before = IMAGE_END + after
            image += 1
        return [*pieces, Piece(text=before, turn=turn)]

    def _document(self, messages: Messages, grids: Sequence[Grid]) -> list[Piece]:
        pieces: list[Piece] = []
        image = 0
        for turn, message in enumerate(messages):
            text, *rest = message["content"].split(IMAGE_MARK)
            pieces.append(Piece(text=text, turn=turn, trained=True, is_said=bool(text)))
            for text in rest:
                pieces += self._image("", grids[image], image, turn)
                pieces.append(Piece(text=IMAGE_END, turn=turn))
                pieces.append(Piece(text=text, turn=turn, trained=True, is_said=bool(text)))
                image += 1
        # Counted with the first part: it is there however many parts are kept.
        return pieces + self.fixed(self.tokenizer.format.end, trained=True)

    def _image(self, before: str, grid: Grid, image: int, turn: int) -> list[Piece]:
        """From the text `before` an image to its last placeholder."""
        first_tag, *later_tags = tags = self.visual.tags_inside(grid)
        if self.visual.fusion == "cross_attention":
            pieces = [
                Piece(text=before + IMAGE_START, turn=turn, lead_of=image),
                Piece(text=first_tag, turn=turn, lead_of=image, tile=0),
            ]
            for tile, tag in enumerate(later_tags, start=1):
                pieces.append(Piece(text=tag, turn=turn, tile=tile))
            return [*pieces[:-1], replace(pieces[-1], ends_image=True)]
        if self.image_boundary == "separate" and self.visual.has_text_tags:
            leads = [before + IMAGE_START, first_tag]
        else:
            leads = [before + IMAGE_START + first_tag]
        pieces = [Piece(text=lead, turn=turn, lead_of=image) for lead in leads]
        self.visual.check_soft_tags(grid)
        ids = (self.tokenizer.image_id,) * self.visual.num_tokens_per_tile
        tile = Piece(ids=ids, turn=turn, is_image=True)
        # What stands inside of a hybrid is its last tile.
        inside = self.visual.soft_tags(grid)[-len(tags) :]
        soft = [[Piece(ids=tag, turn=turn)] if tag else [] for tag in inside]
        pieces += [*soft[0], tile]
        for tag, own in zip(later_tags, soft[1:], strict=True):
            pieces += [Piece(text=tag, turn=turn), *own, tile]
        return [*pieces[:-1], replace(pieces[-1], ends_image=True)]
