"""Names under which samples say things, by what they mean. docs/import.md has the same lists.

Names are compared in lower case, with `-` and spaces as `_`.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Meaning -> names, those looked for first in front.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "conversation": ("messages", "conversations", "conversation", "texts", "dialogue", "dialog"),
    "earlier turns": ("history",),
    "system text": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
    "question": ("question", "query", "prompt", "instruction", "problem"),
    "input of an instruction": ("input",),
    "context of a question": ("context", "hint"),
    "answer": (
        "answers", "answer", "response", "output", "completion", "target", "solution", "label",
        "ground_truth", "multiple_choice_answer",
    ),
    "weights of answers": ("answer_weights",),
    "options": ("choices", "options"),
    "right option": (
        "correct", "correct_choice_idx", "correct_index", "correct_idx", "answer_index",
        "answer_idx", "answerkey", "answer_key", "correct_option", "correct_choice",
        "correct_answer",
    ),
    "caption": ("caption", "captions", "description"),
    "text": ("text",),
    "document": ("parts",),
    "regions": ("regions",),
    "weight in the loss": ("loss_weight", "weight", "sample_weight"),
    "whether it is trained": ("loss_mask", "loss", "train", "training", "trained"),
}  # fmt: skip

ID_FIELDS = ("id", "image_id", "sample_id", "question_id", "uid")

IMAGES = (
    "images", "image", "jpg", "png", "picture", "pictures", "img", "imgs", "photo", "jpeg", "webp",
    "image_path", "image_paths", "image_file", "image_files", "image_name", "image_names",
    "image_list", "img_path", "img_paths", "file_name", "file_names", "filename", "image_base64",
    "image_b64", "base64", "image_url", "image_urls", "media",
)  # fmt: skip
VIDEOS = (
    "video", "videos", "video_path", "video_paths", "video_file", "video_name", "video_url", "mp4",
)  # fmt: skip
# `image_1`, `image1`, `img_2`, `image_path_0`, ...
NUMBERED_IMAGE = re.compile(r"(image|img|picture|image_path|image_file|image_url)_?(\d{1,3})")
# `option_a`, `choice_b`, `optionc`; the letters alone are options too: `A`, `B`, ...
LETTERED_OPTION = re.compile(r"(?:(?:option|choice)_?)?([a-z])")
NUMBERED_OPTION = re.compile(r"(?:option|choice)_?(\d{1,2})")

# Of a turn.
ROLE_FIELDS = ("role", "from", "speaker")
CONTENT_FIELDS = ("content", "value", "text")
PAIRS = (("user", "human", "question"), ("assistant", "gpt", "answer", "bot"))
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
TURN_TRAINED = ("weight", *SPELLINGS["whether it is trained"])

# Fields whose loss would change what a sample says, and that nothing is made of -> what to do.
_PREFERENCE = "preference data say which answer is better; for training on one, name it answer"
_SOUND = "sound is not read; leave such samples out"
_PLACES = (
    "places in an image are only read as regions or written in the text; remove the field if the "
    "text is about the whole image"
)
_TOKENS = "tokens of another tokenizer are not read; give the text"
_THOUGHT = "where it belongs is not known; write it into the answer, or remove it"
_MASKS = "masks are read per turn, as weight, loss_mask, loss or train"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("chosen", "rejected", "chosen_response", "rejected_response", "rejected_responses",
         "rejected_images", "rejected_messages"),
        _PREFERENCE,
    ),
    **dict.fromkeys(
        ("audio", "audios", "audio_path", "audio_paths", "audio_file", "audio_url", "speech",
         "sound", "wav", "mp3", "flac"),
        _SOUND,
    ),
    **dict.fromkeys(("bbox", "bboxes", "box", "boxes", "objects"), _PLACES),
    **dict.fromkeys(("input_ids", "token_ids", "labels"), _TOKENS),
    **dict.fromkeys(
        ("reasoning", "reasoning_content", "thinking", "think", "thought", "thoughts", "cot",
         "chain_of_thought", "refusal"),
        _THOUGHT,
    ),
    **dict.fromkeys(
        ("train_on_input", "train_on_inputs", "train_on_prompt", "mask_history", "loss_masks",
         "token_weights"),
        _MASKS,
    ),
}  # fmt: skip

# Pictures that describe another one: not trained on, and listed.
ANNOTATIONS = re.compile(
    r"(.*_)?(mask|masks|depth|depths|depth_map|segmentation|segmentations|semantic|normals|thumbnail|"
    r"heatmap|annotation|annotations)(_.*)?"
)

# What a sample is made of: one of these.
MAIN_MEANINGS = (
    "conversation", "question", "input of an instruction", "caption", "text", "document", "regions",
)  # fmt: skip
# Every name with a meaning that decides what is trained.
MEANINGS: dict[str, str] = {name: meaning for meaning, names in SPELLINGS.items() for name in names}


@lru_cache(maxsize=4096)
def plain(name: object) -> str:
    """A field's name as the tables have it."""
    return str(name).lower().replace("-", "_").replace(" ", "_")
