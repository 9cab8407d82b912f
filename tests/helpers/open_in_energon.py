"""A process of its own with Megatron-Energon: prepares shards and prints what it reads.

    python open_in_energon.py FOLDER

Writes into FOLDER; prints one JSON object, key -> [the JSON member, sizes of the images in bytes].
"""

import json
import sys
from pathlib import Path

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_val_dataset,
    stateless,
)
from megatron.energon.epathlib import EPath
from megatron.energon.flavors import BaseWebdatasetFactory


@edataclass
class ReadSample(Sample):
    content: dict
    sizes: list


@stateless
def cook(sample: dict) -> ReadSample:
    images = sorted(name for name in sample if name.endswith((".jpg", ".png")))
    content = sample["json"]
    content = json.loads(content) if isinstance(content, (bytes, str)) else content
    sizes = [len(sample[name]) for name in images]
    return ReadSample(**basic_sample_keys(sample), content=content, sizes=sizes)


class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = (Cooker(cook),)

    def batch(self, samples):
        return samples


def main() -> None:
    folder = Path(sys.argv[1])
    tars = [path.name for path in sorted(folder.glob("*.tar"))]
    BaseWebdatasetFactory.prepare_dataset(
        EPath(folder), tars, split_parts_patterns=[("val", ".*")], workers=1
    )
    crude = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(crude)
    alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        EPath(folder), split_part="val", worker_config=alone, batch_size=1, task_encoder=Encoder()
    )
    read = {}
    for (sample,) in get_loader(dataset):
        read[sample.__key__.split("/", 1)[-1]] = [sample.content, sample.sizes]
    print(json.dumps(read))


if __name__ == "__main__":
    main()
