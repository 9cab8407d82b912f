"""Questions written out as plain files, with their images beside them.

The written folder is what Megatron's evaluation, the Hugging Face client and the report share: the
client reads it without importing anything of training.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from nvlm.data.images.image import image_type
from nvlm.data.index.stored import decode_images
from nvlm.data.shards.shard import ShardReader
from nvlm.evaluate.questions import Question
from nvlm.files import folder_beside, json_line

SAMPLES_FILE = "samples.jsonl"


def read_image_files(question: Question, max_megapixels: float) -> list[bytes]:
    """The encoded images of a question, of a video its frames as PNG.

    Raises:
        SampleError: the video is damaged.
    """
    with ShardReader() as reader:
        if not question.num_frames:
            return [reader.read(question.shard, where) for where in question.images]
        files = []
        for pixels in decode_images(
            reader, question.shard, question.images, question.num_frames, max_megapixels
        ):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            files.append(buffer.getvalue())
        return files


def write_questions(questions: Sequence[Question], folder: Path, max_megapixels: float) -> Path:
    """Write `folder/samples.jsonl` and the images beside it; replaces what was there.

    A line has sample_id, source, task, messages, max_num_tiles, truth (a list; see
    `score.Truth.as_fields`) and images (paths relative to `folder`).
    """
    folder = Path(folder)
    with folder_beside(folder) as beside, (beside / SAMPLES_FILE).open("w") as file:
        (beside / "images").mkdir()
        for number, question in enumerate(questions):
            names = []
            for index, data in enumerate(read_image_files(question, max_megapixels)):
                names.append(f"images/{number:05d}.{index}.{image_type(data)}")
                (beside / names[-1]).write_bytes(data)
            line = {
                "sample_id": question.sample_id,
                "source": question.source,
                "task": question.task,
                "messages": question.messages,
                "max_num_tiles": question.max_num_tiles,
                **question.truth.as_fields(),
                "images": names,
            }
            file.write(json_line(line))
    return folder
