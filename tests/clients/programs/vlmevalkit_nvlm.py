"""Run in a client's environment: VLMEvalKit's class NVLM asks an export.

Usage: vlmevalkit_nvlm.py CHECKOUT EXPORT QUESTIONS.json OUT.json MAX_NEW_TOKENS

Its files run as they are, but for two packages around them: `vlmeval` itself, which only sets up
logging and downloads, and `vlmeval.dataset`, which imports every benchmark.
"""

import json
import sys
import types
from pathlib import Path

import torch


def main() -> None:
    checkout, export, questions, out, max_new_tokens = sys.argv[1:]
    stand_in("vlmeval", Path(checkout, "vlmeval"))
    stand_in("vlmeval.vlm", Path(checkout, "vlmeval", "vlm"))
    stand_in("vlmeval.dataset", None).DATASET_TYPE = lambda dataset, **_: "VQA"
    leave_out_operators_of_torchvision()
    # The class sends pixels to a GPU.
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self: self

    from vlmeval.vlm.nvlm import NVLM

    client = NVLM(export, max_new_tokens=int(max_new_tokens))
    prompts: list = []
    generate = client.model.generate

    def recording_generate(*args, **kwargs):
        prompts.append(kwargs["input_ids"][0].tolist())
        return generate(*args, **kwargs)

    client.model.generate = recording_generate
    found: dict = {"prompts": {}, "answers": {}, "own answers": {}}
    settings = {"max_new_tokens": int(max_new_tokens), "do_sample": False}
    for name, question in json.loads(Path(questions).read_text()).items():
        text = question["messages"][0]["content"].removeprefix("<image>\n")
        (image,) = question["images"]
        message = [{"type": "image", "value": image}, {"type": "text", "value": text}]
        found["answers"][name] = client.generate(message)
        found["prompts"][name] = prompts.pop()
        pixels = client.model.load_image(image)
        found["own answers"][name] = client.model.chat(client.tokenizer, pixels, text, settings)
        prompts.clear()
    Path(out).write_text(json.dumps(found))


def leave_out_operators_of_torchvision() -> None:
    """The index has torchvision for GPUs; its compiled part does not load beside torch without one.

    The class needs its transforms, which are Python: only the import asks for those operators.
    """
    register = torch.library.register_fake

    def register_others(name, *arguments, **more):
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *arguments, **more)

    torch.library.register_fake = register_others


def stand_in(name: str, folder: Path | None) -> types.ModuleType:
    module = types.ModuleType(name)
    if folder is not None:
        module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module


if __name__ == "__main__":
    with torch.no_grad():
        main()
