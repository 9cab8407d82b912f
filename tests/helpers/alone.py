"""For clients of exports: a process in which this project cannot be imported at all."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Refusal(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ("nvlm", "megatron"):
            raise ModuleNotFoundError(f"{name} is hidden from this process", name=name)


def hide_project() -> None:
    """From here on `import nvlm` and `import megatron` fail, as where neither is installed."""
    assert not {"nvlm", "megatron"} & {module.partition(".")[0] for module in sys.modules}
    sys.meta_path.insert(0, _Refusal())


def opened_export() -> tuple[Any, Any, dict, str]:
    """Tokenizer, model, cases and the file for results, of a client that is called with the folder
    of an export, a file of cases and one for results."""
    hide_project()
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder, cases_file, results_file = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    return tokenizer, model, torch.load(cases_file), results_file
