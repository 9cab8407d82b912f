"""Small folders of benchmarks in their published formats; pictures and texts are made here."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

JsonRows = list[dict[str, Any]]
SIZE = (64, 48)  # of the pictures
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def drawn(number: int, kind: str = "JPEG") -> bytes:
    """A picture of its own for each number."""
    image = Image.new("RGB", SIZE, (40 * number % 256, 90, 200 - 30 * number % 200))
    ImageDraw.Draw(image).ellipse((8, 8, 20 + 3 * number % 40, 40), fill=(250, 240, number % 256))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_images(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))


def write_parquet(path: Path, rows: JsonRows, images: str = "image", several: bool = False) -> None:
    """Rows with a picture each, as Hugging Face's files hold them; `several`: a list of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pictures: list[Any] = [{"bytes": drawn(n), "path": f"{n}.jpg"} for n in range(len(rows))]
    if several:
        columns[images] = pa.array([[picture] for picture in pictures], pa.list_(_IMAGE))
    else:
        columns[images] = pa.array(pictures, _IMAGE)
    pq.write_table(pa.table(columns), path, row_group_size=2)


def coco_name(folder: str, number: int) -> str:
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


PEOPLE = {
    1: ["red"] * 6 + ["dark red"] * 2 + ["maroon", "Red."],
    2: ["no"] * 10,
    3: ["2"] * 4 + ["two"] * 4 + ["three", "many"],
}
_QUESTIONS = {1: "What color is the ball?", 2: "Is it a cat?", 3: "How many balls are there?"}
_TYPES = {1: "other", 2: "yes/no", 3: "number"}


def _answers(number: int) -> JsonRows:
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": at}
        for at, text in enumerate(PEOPLE[number], start=1)
    ]


def write_vqa(data: Path, name: str, prefix: str, split: str) -> Path:
    """VQAv2's or OK-VQA's JSON of `split` (val2014, ...), and its pictures."""
    folder = data / name
    questions = [
        {"image_id": 10 * n, "question": text, "question_id": 100 * n}
        for n, text in _QUESTIONS.items()
    ]
    write_json(
        folder / f"{prefix}OpenEnded_mscoco_{split}_questions.json",
        {"info": {}, "data_subtype": split, "questions": questions},
    )
    if not split.startswith("test"):
        annotations = [
            {
                "question_type": ("one", "eight", "other")[n - 1],
                "multiple_choice_answer": PEOPLE[n][0], "answers": _answers(n),
                "image_id": 10 * n, "answer_type": _TYPES[n], "question_id": 100 * n,
            }
            for n in reversed(_QUESTIONS)
        ]  # fmt: skip
        write_json(
            folder / f"{prefix}mscoco_{split}_annotations.json", {"annotations": annotations}
        )
    images = split.replace("test-dev", "test")
    write_images(folder, [coco_name(images, 10 * n) for n in _QUESTIONS])
    return folder


def vqa_parquet_rows() -> JsonRows:
    return [
        {"question_id": 100 * n, "question": text, "answers": _answers(n),
         "answer_type": _TYPES[n], "question_type": "eight"}
        for n, text in _QUESTIONS.items()
    ]  # fmt: skip


def write_vizwiz(data: Path, split: str = "val") -> Path:
    folder = data / "vizwiz"
    rows: JsonRows = []
    for n, text in _QUESTIONS.items():
        row: dict[str, Any] = {"image": f"VizWiz_{split}_{n:08d}.jpg", "question": text}
        if split != "test":
            people = ["unanswerable"] * 10 if n == 2 else PEOPLE[n]
            row["answers"] = [{"answer": one, "answer_confidence": "yes"} for one in people]
            row["answer_type"] = "unanswerable" if n == 2 else "other"
            row["answerable"] = int(n != 2)
        rows.append(row)
    write_json(folder / f"{split}.json", rows)
    write_images(folder / split, [row["image"] for row in rows])
    return folder


CAPTIONS = {
    7: ["A red ball lies on the grass.", "a ball on grass", "Red ball."],
    8: ["Two boys kick a ball.", "Boys play football in a park"],
    9: ["A dog looks at a ball.", "the dog waits for the ball to move"],
}


def write_karpathy(data: Path) -> Path:
    """`dataset_coco.json` with 7 and 8 for testing, 9 of restval."""
    folder = data / "coco_captions"
    images = [
        {
            "filepath": "val2014", "filename": Path(coco_name("val2014", n)).name, "cocoid": n,
            "imgid": n, "sentids": [], "split": "restval" if n == 9 else "test",
            "sentences": [{"tokens": text.split(), "raw": text} for text in captions],
        }
        for n, captions in CAPTIONS.items()
    ]  # fmt: skip
    write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})
    write_images(data / "coco", [coco_name("val2014", n) for n in CAPTIONS])
    return folder


def write_blip_karpathy(data: Path) -> Path:
    folder = data / "coco_captions"
    test = [{"image": coco_name("val2014", n), "caption": CAPTIONS[n]} for n in (7, 8)]
    train = [
        {"image": coco_name("val2014", 9), "caption": text, "image_id": "coco_9"}
        for text in CAPTIONS[9]
    ]
    write_json(folder / "coco_karpathy_test.json", test)
    write_json(folder / "coco_karpathy_train.json", train)
    write_images(folder, [coco_name("val2014", n) for n in CAPTIONS])
    return folder


DOMAINS = {7: "in-domain", 8: "near-domain", 9: "out-domain"}


def write_nocaps(data: Path) -> Path:
    folder = data / "nocaps"
    images = [
        {"id": n, "file_name": f"{n:016x}.jpg", "width": 64, "height": 48, "domain": DOMAINS[n]}
        for n in CAPTIONS
    ]
    annotations = [
        {"image_id": n, "id": 10 * n + at, "caption": text}
        for n, texts in CAPTIONS.items()
        for at, text in enumerate(texts)
    ]
    write_json(
        folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations}
    )
    write_json(folder / "nocaps_val_image_info.json", {"images": images})
    write_images(folder / "images", [image["file_name"] for image in images])
    return folder


def write_textcaps(data: Path, split: str = "val") -> Path:
    folder = data / "textcaps"
    rows = [
        {
            "caption_id": 10 * n + at, "caption_str": text, "image_id": f"{n:016x}",
            "image_name": f"{n:016x}", "set_name": split, "reference_strs": texts,
        }
        for n, texts in CAPTIONS.items()
        for at, text in enumerate(texts)
    ]  # fmt: skip
    write_json(folder / f"TextCaps_0.1_{split}.json", {"dataset_name": "textcaps", "data": rows})
    write_images(folder / "train_images", [f"{n:016x}.jpg" for n in CAPTIONS])
    return folder


def write_pope(data: Path) -> Path:
    folder = data / "pope" / "coco"
    folder.mkdir(parents=True)
    for group in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": n, "image": Path(coco_name("val2014", n)).name,
                "text": f"Is there a {group} ball in the image?", "label": ("yes", "no")[n % 2],
            }
            for n in range(1, 5)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{group}.json").write_text(lines)
    write_images(folder.parent, [coco_name("val2014", n) for n in range(1, 5)])
    return folder.parent


_MMBENCH_OPTIONS = {
    1: ["red, or\tso", 'the "left" one', "blue"],
    2: ["a cat", "a dog"],
}


def mmbench_rows(num_rotations: int | None = None) -> JsonRows:
    """Two questions in all rotations of their options, or in so many; option 2 is right."""
    rows = []
    for turn in range(num_rotations or 3):
        for question, options in _MMBENCH_OPTIONS.items():
            if turn >= len(options):
                continue
            order = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": question + 1_000_000 * turn,
                    "question": f"What is in picture {question}?",
                    "hint": "It is small.\nLook closely." if question == 1 else None,
                    **dict(zip("ABCD", [*order, None, None])),
                    "answer": "ABCD"[order.index(options[1])],
                    "category": "color" if question == 1 else "identity",
                    "l2-category": "attribute" if question == 1 else "coarse",
                    "split": "dev",
                }
            )
    return rows


def write_mmbench(data: Path, rows: JsonRows | None = None) -> Path:
    """A TSV as pandas writes it; rotated questions have their first row's index for the image."""
    folder = data / "mmbench"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "MMBench_DEV_EN.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = mmbench_rows() if rows is None else rows
        writer = csv.DictWriter(file, [*rows[0], "image"], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            question, turn = 2, 0  # of a row whose index is damaged
            if isinstance(row["index"], int):
                turn, question = divmod(row["index"], 1_000_000)
            image = base64.b64encode(drawn(question)).decode()
            writer.writerow({"image": str(question) if turn else image, **row})
    return folder


def seed_rows() -> JsonRows:
    rows = [
        {
            "answer": "ABCD"[n % 4], "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
            "choice_d": "Four", "data_id": f"123_{n}", "data_type": "image",
            "question": f"How many balls are in picture {n}?", "question_id": f"10{n}",
            "question_type_id": 5 if n else 1,
        }
        for n in range(3)
    ]  # fmt: skip
    video = {**rows[0], "data_type": "video", "question_id": "v1", "question_type_id": 10}
    return [*rows, {**video, "data_id": "94328.webm"}]


def write_seed(data: Path) -> Path:
    folder = data / "seed"
    write_json(folder / "SEED-Bench.json", {"questions": seed_rows(), "question_type": {}})
    images = [row["data_id"] for row in seed_rows() if row["data_type"] == "image"]
    write_images(folder / "SEED-Bench-image", images)
    return folder


def refcoco_rows() -> JsonRows:
    """Boxes as x, y, width, height in pixels of pictures of `SIZE`."""
    return [
        {"question_id": "1", "answer": ["the ball", "red ball on the left"],
         "bbox": [16.0, 12.0, 32.0, 24.0], "file_name": "COCO_train2014_000000000001.jpg"},
        {"question_id": "2", "answer": ["the dog"], "bbox": [0.0, 0.0, 64.0, 48.0],
         "file_name": "COCO_train2014_000000000002.jpg"},
    ]  # fmt: skip


def write_refcoco_lines(data: Path, name: str, prefix: str, split: str) -> Path:
    folder = data / name
    folder.mkdir(parents=True)
    lines = [
        {"image": f"data/coco/{coco_name('train2014', n)}", "sent": text, "width": 640,
         "height": 480, "bbox": [160.0, 120.0, 480.0, 360.0]}
        for n, text in enumerate(["the ball", "a dog"])
    ]  # fmt: skip
    (folder / f"{prefix}_{split}.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    write_images(data / "coco", [coco_name("train2014", n) for n in range(2)])
    return folder
