"""Conversations as token ids, exactly as the model was trained to read them.

What stands around each turn says `chat_format` of the configuration. Control tokens are inserted as
ids; text between two of them is tokenised as one string in which no special token is recognised, so
no text can turn into a control token. An earlier answer begins a new string, as it did when it was
generated. `image_boundary` of the configuration says how text around images is tokenised.
"""

from .chat_format import answer_opening, plain_tokenizers, split_controls, written_turns

IMAGE_MARK = "<image>"
IMAGE_START, IMAGE_END = "<Image>", "</Image>"


def tile_tags(num_tiles, kind, use_thumbnail, max_num_tiles):
    """The text before each tile's placeholders, in order of the tiles.

    The numbers have as many digits as `max_num_tiles` has; the thumbnail's tag is as much longer.
    """
    if kind == "none":
        return [""] * num_tiles
    digits = len(str(max_num_tiles))
    numbered = [f"<tile_{number:0{digits}}>" for number in range(1, num_tiles + 1)]
    if num_tiles > 1 and not use_thumbnail:
        return numbered
    return [*numbered[:-1], f"<tile_global_thumbnail{'0' * (digits - 1)}>"]


class PromptEncoder:
    """Token ids of prompts, for one tokenizer and the settings in the model's configuration."""

    def __init__(self, tokenizer, config, num_image_token):
        self.tokenizer = tokenizer
        self.config = config
        self.num_image_token = num_image_token
        self.image_id = self.control_id(config.image_token)
        self.chat_format = config.chat_format
        self.control_ids = {token: self.control_id(token) for token in self.chat_format["controls"]}
        after = split_controls(self.chat_format, self.chat_format["assistant"][1])
        self.turn_end_id = next(
            self.control_ids[part] for part in after if part in self.control_ids
        )
        vocabulary = tokenizer.get_vocab()
        others = {vocabulary[token] for token in self.chat_format["stops"] if token in vocabulary}
        self.stop_ids = {self.turn_end_id, *others}
        self._plain = plain_tokenizers(tokenizer)

    def _writer(self):
        return Writer(self._plain)

    def control_id(self, token):
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token}: use the one of this folder")
        return token_id

    def conversation(self, question, history, num_patches_list, system_message):
        """All turns, up to where the answer to `question` begins.

        Raises:
            ValueError: the questions' `<image>` marks do not match `num_patches_list`.
        """
        writer = self._writer()
        images = iter(num_patches_list)
        check_marks([*(earlier for earlier, _ in history), question], num_patches_list)
        turns = []
        for earlier_question, earlier_answer in history:
            turns += [("user", earlier_question), ("assistant", earlier_answer)]
        turns.append(("user", question))
        self._write_format(writer, self.chat_format["begin"])
        for role, before, joined, content, after in written_turns(
            self.chat_format, system_message, turns
        ):
            writer.boundary()
            self._write_format(writer, before)
            if role == "assistant":
                writer.boundary()
            writer.text(joined)
            self._write_content(writer, content, images if role == "user" else None)
            self._write_format(writer, after)
        writer.boundary()
        self._write_format(writer, answer_opening(self.chat_format))
        return writer.finish()

    def bare(self, text, num_patches_list):
        """`text` alone, without turns; its `<image>` marks are images."""
        check_marks([text], num_patches_list)
        writer = self._writer()
        self._write_format(writer, self.chat_format["begin"])
        self._write_content(writer, text, iter(num_patches_list))
        return writer.finish()

    def _write_format(self, writer, text):
        for part in split_controls(self.chat_format, text):
            if part in self.control_ids:
                writer.control(self.control_ids[part])
            else:
                writer.text(part)

    def _write_content(self, writer, content, images):
        """Text, with an image for each mark; where `images` is None a mark is plain text."""
        if images is None:
            writer.text(content)
            return
        if self.config.image_boundary == "block":
            first, *others = texts_between_images(content)
        else:
            first, *others = content.split(IMAGE_MARK)
        writer.text(first)
        for text in others:
            self._write_image(writer, next(images))
            writer.text(text)

    def _write_image(self, writer, num_tiles):
        apart = self.config.image_boundary == "block"
        if apart:
            writer.boundary()
        writer.text(IMAGE_START)
        kind, most = self.config.tile_tags, self.config.max_dynamic_patch
        for tag in tile_tags(num_tiles, kind, self.config.use_thumbnail, most):
            if self.config.image_boundary == "separate":
                writer.boundary()
            writer.text(tag)
            writer.control(self.image_id, repeat=self.num_image_token)
        writer.text(IMAGE_END)
        if apart:
            writer.boundary()
            writer.text("\n")
            writer.boundary()


def texts_between_images(content):
    """The texts before, between and after the images, each of which has a line of its own.

    With `image_boundary` `block`: a line is broken before a mark that does not begin one, and one
    newline follows a mark, whatever number was there. Servers find images by the tokens of the mark
    and a newline, which are others in the middle of a line and before a second newline.
    """
    first, *others = content.split(IMAGE_MARK)
    texts = [first, *(text.lstrip("\r\n") for text in others)]
    whole = [text if not text or text.endswith("\n") else text + "\n" for text in texts[:-1]]
    return [*whole, texts[-1]]


def check_marks(questions, num_patches_list):
    """Raise `ValueError` unless there is one `<image>` mark per image."""
    num_marks = sum(question.count(IMAGE_MARK) for question in questions)
    if num_marks != len(num_patches_list):
        raise ValueError(
            f"{num_marks} {IMAGE_MARK} marks for {len(num_patches_list)} images "
            f"(num_patches_list {list(num_patches_list)})"
        )


class Writer:
    """Collects text and control tokens; text between two control tokens is tokenised together."""

    def __init__(self, plain):
        self.after_control, self.within = plain
        self.ids = []
        self.pending = ""
        self.is_after_text = False

    def text(self, text):
        self.pending += text

    def boundary(self):
        """Tokenise what is pending, apart from what follows."""
        if self.pending:
            plain = self.within if self.is_after_text else self.after_control
            self.ids += plain.encode(self.pending, add_special_tokens=False).ids
            self.is_after_text = True
        self.pending = ""

    def control(self, token_id, repeat=1):
        self.boundary()
        self.ids += [token_id] * repeat
        self.is_after_text = False

    def finish(self):
        self.boundary()
        return self.ids
