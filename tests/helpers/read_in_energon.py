"""A process of its own with Megatron-Energon: what it reads in prepared folders.

    python read_in_energon.py FOLDER...

Indexes each folder anew, as `energon prepare` does, and keeps its dataset.yaml. Prints a JSON list
with, for each folder, the fields of its samples but for images.
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import torch
from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset
from megatron.energon.epathlib import EPath
from megatron.energon.flavors import BaseWebdatasetFactory


class Encoder(DefaultTaskEncoder):
    def batch(self, samples):
        return samples


def read(folder: Path) -> list[dict]:
    settings = (folder / ".nv-meta" / "dataset.yaml").read_text()
    tars = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.tar"))]
    BaseWebdatasetFactory.prepare_dataset(
        EPath(folder), tars, split_parts_patterns=[("val", ".*")], workers=1
    )
    (folder / ".nv-meta" / "dataset.yaml").write_text(settings)
    alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        EPath(folder), split_part="val", worker_config=alone, batch_size=1, task_encoder=Encoder()
    )
    found = []
    for (sample,) in get_loader(dataset):
        fields = {
            field.name: getattr(sample, field.name)
            for field in dataclasses.fields(sample)
            if field.name != "image" and not field.name.startswith("__")
        }
        found.append({"key": sample.__key__.rpartition("/")[2], **plain(fields)})
    return found


def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    printed = [read(Path(folder)) for folder in sys.argv[1:]]
    print(json.dumps(printed))
